"""All transfers of one direction, and what their peers are granted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from fedcombiner.modelstorage.lanes import Lane, SlowLane
from fedcombiner.modelstorage.limits import TransferLimits
from fedcombiner.modelstorage.pace import Pace
from fedcombiner.modelstorage.transfer import Transfer

_SPAN_S: Final = 30.0  # over which the rate of a peer is taken


class Traffic:
    """The transfers of one direction. Each begins, and then runs.

    Twice as many may begin as may run. An upload begins by sending its first bytes, and with those in hand it
    waits for a slot to run; those that wait to begin are not read, so HTTP/2 flow control keeps their data
    at the peer. `happened` is told of each of `lanes.EVENTS`.
    """

    def __init__(self, limits: TransferLimits, happened: Callable[[str], None]) -> None:
        self._limits = limits
        self._slow = SlowLane(limits.max_slow_transfers, happened)
        self._beginning = Lane(2 * limits.max_transfers, self._slow, happened, limits.max_waiting_transfers)
        self._running = Lane(limits.max_transfers, self._slow, happened)

    @contextmanager
    def transfer(self, client: str) -> Iterator[Transfer]:
        """A transfer of this client, which leaves all lanes at the end of the block."""
        transfer = Transfer(client, Pace(self._limits.min_rate, _SPAN_S), self._limits.idle_timeout)
        try:
            yield transfer
        finally:
            self._end_beginning(transfer)
            self._running.leave(transfer)

    async def begin(self, transfer: Transfer) -> None:
        """Wait until the transfer may begin; raises Unavailable if too many wait."""
        await self._beginning.enter(transfer)

    async def run(self, transfer: Transfer) -> None:
        """Wait until a transfer that has begun may run."""
        await self._running.enter(transfer)
        self._end_beginning(transfer)

    async def share(self, transfer: Transfer) -> None:
        """Between two chunks: let clients that have fewer transfers go first."""
        await self._running.share(transfer)

    @property
    def under_way(self) -> int:
        return self.slow + self._beginning.running + self._running.running + self._running.paused

    @property
    def slow(self) -> int:
        return len(self._slow.holders)

    @property
    def waiting(self) -> int:
        """Those that wait to begin."""
        return self._beginning.waiting

    def _end_beginning(self, transfer: Transfer) -> None:
        self._slow.holders.discard(transfer)
        self._beginning.leave(transfer)
