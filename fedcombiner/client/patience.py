"""When to try a transfer again, and when to give it up: by progress, never by its length."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, TypeVar

from fedcombiner.client.errors import TransferBroken, is_final, rpc_errors
from fedcombiner.servicekit.backoff import Backoff
from fedcombiner.servicekit.errors import ServiceError
from fedcombiner.wire.chunks import MalformedMessage

T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Called in the event loop with the bytes done so far and the bytes in all (0: not known)."""

_BACKOFF: Final = Backoff(0.2, 5.0)


class Patience:
    """The progress of one transfer over all its attempts.

    Only bytes that no attempt reached before are progress: a transfer that always breaks at the same place
    ends after `limit` seconds there, one that gets on may take for ever.
    """

    def __init__(self, limit: float, *, size: int = 0, progress: Progress | None = None) -> None:
        self._limit = limit
        self._size = size
        self._progress = progress
        self._clock = asyncio.get_running_loop().time
        self._moved_at = self._clock()
        self._delays: Iterator[float] = _BACKOFF.delays()
        self.best = 0

    def reached(self, position: int) -> None:
        """An attempt has got `position` bytes across."""
        if self._progress is not None:
            self._progress(position, self._size)
        if position > self.best:
            self.best = position
            self._moved_at = self._clock()
            self._delays = _BACKOFF.delays()

    async def of(self, step: Awaitable[T]) -> T:
        """Wait for one step of an attempt.

        Raises:
            TransferBroken: it took longer than the limit.
        """
        try:
            async with asyncio.timeout(self._limit):
                return await step
        except TimeoutError:
            raise TransferBroken(f"no progress for {self._limit:g} s after {self.best} bytes") from None

    async def repeat(self, attempt: Callable[[], Awaitable[T]], *, repeatable: bool = True) -> T:
        """The result of the first attempt that succeeds.

        Unless `repeatable`, no attempt follows on one that got any bytes across. Raises the error of the last
        attempt if it is final, else TransferBroken.
        """
        while True:
            try:
                with rpc_errors():
                    return await attempt()
            except MalformedMessage as error:
                failure: ServiceError = TransferBroken(
                    f"the server sent a chunk that cannot be read: {error}"
                )
            except ServiceError as error:
                failure = error
            delay = next(self._delays)
            if is_final(failure) or (self.best and not repeatable):
                raise failure
            if self._clock() - self._moved_at + delay > self._limit:
                raise TransferBroken(f"given up after {self.best} bytes: {failure}") from failure
            await asyncio.sleep(delay)
