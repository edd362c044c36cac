"""One transfer: who it counts for, how fast its peer is, and every wait for that peer."""

import asyncio
from collections.abc import Awaitable
from typing import Final, TypeVar

from fedcombiner.modelstorage.pace import Pace
from fedcombiner.servicekit.errors import Unavailable


class PeerStalled(Unavailable):
    """The peer neither sends nor takes what it should, and is given up."""


_T = TypeVar("_T")

# A peer that takes longer for one step is slow, whatever it did before.
STALL_S: Final = 2.0
# A peer has this time to begin before it can be called slow.
GRACE_S: Final = 1.0


class Transfer:
    """An Upload or a Download, as the lanes see it.

    Time counts from the wait for a peer to the next byte that it moves: a message without data is no
    progress, and time that the store takes is nobody's.
    """

    def __init__(self, client: str, pace: Pace, idle_timeout: float) -> None:
        self.client = client
        self._pace = pace
        self._idle_timeout = idle_timeout
        self._since: float | None = None
        self._limit: asyncio.Timeout | None = None
        self._verdict = ""

    async def peer(self, step: Awaitable[_T]) -> _T:
        """The result of a step that the peer takes.

        Raises:
            PeerStalled: the peer has moved no byte for the idle time, or was cut off.
        """
        if self._since is None:
            self._since = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(self._since + self._idle_timeout) as self._limit:
                return await step
        except TimeoutError:
            raise PeerStalled(self._verdict or f"no progress for {self._idle_timeout:g} s") from None
        finally:
            self._limit = None

    def moved(self, count: int) -> None:
        """The peer has sent, or taken, so many bytes."""
        if count:
            self._pace.moved(count, self._waiting())
            self._since = None

    def received(self) -> None:
        """The peer has sent all it had to: it is waited for no more, and any wait that follows is ours."""
        self._since = None

    @property
    def rate(self) -> float:
        """Bytes a second, as of now."""
        return self._pace.rate(self._waiting())

    @property
    def is_slow(self) -> bool:
        """Whether the peer is being waited for, and is slower than it may be while others wait."""
        if self._since is None or self.waited < GRACE_S:
            return False
        return self._waiting() >= STALL_S or self._pace.is_slow(self._waiting())

    @property
    def waited(self) -> float:
        """Seconds for which the peer was waited for in all."""
        return self._pace.waited + self._waiting()

    @property
    def can_be_cut(self) -> bool:
        """Whether there is nothing under way but a wait for the peer."""
        return self._limit is not None and not self._limit.expired()

    def cut(self, verdict: str) -> None:
        """End it with Unavailable; only while it `can_be_cut`."""
        assert self._limit is not None
        self._verdict = verdict
        self._limit.reschedule(asyncio.get_running_loop().time())

    def _waiting(self) -> float:
        return 0.0 if self._since is None else asyncio.get_running_loop().time() - self._since
