"""Slots for transfers, shared fairly among clients, and out of the reach of slow peers.

A lane has a number of slots and a line of transfers that wait. The next slot goes to the client that has
the fewest, and within a client in the order of arrival. A client that has more than others gives a slot back
between two chunks while one that has fewer waits. A slow peer gives up its slot as soon as another transfer
waits: it moves to the slow lane and goes on there. When the slow lane is full, too, the slowest transfer of
the client that has the most in it is ended. While nobody waits, none of this happens.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

from fedcombiner.modelstorage.transfer import Transfer
from fedcombiner.servicekit.errors import Unavailable
from fedcombiner.servicekit.fairqueue import Entry, FairQueue

EVENTS: Final = ("slowed", "cut", "yielded", "refused", "disconnected")
Event = Callable[[str], None]

# While a transfer waits, the slots are looked through this often for a peer that has become slow.
_LOOK_S: Final = 0.25
# A peer is not cut off before it was waited for this long: slow ones need some time for a first message.
_SPARED_S: Final = 5.0

_Waiting = tuple[Transfer, "asyncio.Future[None]"]


class SlowLane:
    """A bounded number of transfers whose peers were slow while others waited."""

    def __init__(self, slots: int, happened: Event) -> None:
        self._slots = slots
        self._happened = happened
        self.holders: set[Transfer] = set()

    def take(self, transfer: Transfer) -> bool:
        """Take a slow transfer from its lane; False if there is no room and none that may be ended for it."""
        if len(self.holders) >= self._slots:
            slowest = self._slowest(self.holders | {transfer})
            if slowest is None:
                return False
            slowest.cut("too slow while others wait for a slot; try again")
            self._happened("cut")
            if slowest is transfer:
                return True
            self.holders.discard(slowest)
        self.holders.add(transfer)
        self._happened("slowed")
        return True

    def _slowest(self, transfers: set[Transfer]) -> Transfer | None:
        of_client = Counter(one.client for one in transfers)
        slow = (one for one in transfers if one.can_be_cut and one.is_slow and one.waited >= _SPARED_S)
        return min(slow, key=lambda one: (-of_client[one.client], one.rate, -one.waited), default=None)


class Lane:
    """Slots, and a line of transfers that wait for one. Without `max_waiting` the line has no bound."""

    def __init__(self, slots: int, slow: SlowLane, happened: Event, max_waiting: int | None = None) -> None:
        self._slots = slots
        self._slow = slow
        self._happened = happened
        self._max_waiting = max_waiting
        self._line: FairQueue[_Waiting] = FairQueue()
        self._timer: asyncio.TimerHandle | None = None
        self._holders: set[Transfer] = set()
        self._held: Counter[str] = Counter()
        self.paused = 0

    @property
    def running(self) -> int:
        return len(self._holders)

    @property
    def waiting(self) -> int:
        return len(self._line) - self.paused

    async def enter(self, transfer: Transfer) -> None:
        """Return when the transfer has a slot.

        Raises:
            Unavailable: the line is full, and the client of this transfer has the most in it.
        """
        entry = self._join(transfer)
        while self._max_waiting is not None and self.waiting > self._max_waiting:
            self._refuse(self._line.newest_of(self._line.heaviest()))
        await self._until_it_has_a_slot(entry)

    async def share(self, transfer: Transfer) -> None:
        """Let a client that has fewer slots go first, and return when the transfer has a slot again.

        At most as many transfers as there are slots pause at a time. One in the slow lane goes on.
        """
        if transfer not in self._holders or self.paused >= self._slots or not self._has_more(transfer.client):
            return
        self._happened("yielded")
        self.paused += 1
        try:
            self._holders.discard(transfer)
            self._uncount(transfer)
            await self._until_it_has_a_slot(self._join(transfer))
        finally:
            self.paused -= 1

    def leave(self, transfer: Transfer) -> None:
        """Give the slot back; does nothing if the transfer has none."""
        had_slot = transfer in self._holders
        self._holders.discard(transfer)
        self._look()
        # Only now: of clients that would be equal then, the one that has just had the slot comes last.
        if had_slot:
            self._uncount(transfer)

    def _join(self, transfer: Transfer) -> Entry[_Waiting]:
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = self._line.add(transfer.client, (transfer, slot))
        self._look()
        return entry

    async def _until_it_has_a_slot(self, entry: Entry[_Waiting]) -> None:
        transfer, slot = entry.item
        try:
            await slot
        except BaseException:
            if entry in self._line:
                self._line.remove(entry)
            self.leave(transfer)
            raise

    def _look(self) -> None:
        """Give away the slots that are free, and look again later while somebody waits."""
        while self._line and self._find_room():
            entry = self._line.oldest_of(min(self._line.owners(), key=self._held.__getitem__))
            self._line.remove(entry)
            transfer, slot = entry.item
            if not slot.done():
                self._holders.add(transfer)
                self._held[transfer.client] += 1
                slot.set_result(None)
        if self._line and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self._look()

    def _find_room(self) -> bool:
        if len(self._holders) < self._slots:
            return True
        slow = (one for one in self._holders if one.is_slow)
        slowest = min(slow, key=lambda one: one.rate, default=None)
        if slowest is None or not self._slow.take(slowest):
            return False
        self._holders.discard(slowest)
        self._uncount(slowest)
        return True

    def _has_more(self, client: str) -> bool:
        """Whether somebody waits who would still have no more slots than this client after getting one."""
        return any(self._held[other] + 1 < self._held[client] for other in self._line.owners())

    def _uncount(self, transfer: Transfer) -> None:
        self._held[transfer.client] -= 1
        if not self._held[transfer.client]:
            del self._held[transfer.client]

    def _refuse(self, entry: Entry[_Waiting]) -> None:
        self._line.remove(entry)
        self._happened("refused")
        _, slot = entry.item
        if not slot.done():
            slot.set_exception(Unavailable("too many transfers are waiting; try again"))
