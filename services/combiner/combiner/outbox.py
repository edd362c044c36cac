"""What clients say, on its way to Redis: in batches, and bounded while Redis is away."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, NoReturn, TypeVar

from combiner.ports import StateUnavailable

FLUSH_S: Final = 0.5

_T = TypeVar("_T")


class Outbox(Generic[_T]):
    """Waits at most `limit` entries; when it is full the oldest is dropped and counted.

    `send` is called with at most `batch` of them at a time, in order; while it raises StateUnavailable, they
    wait.
    """

    def __init__(self, send: Callable[[Sequence[_T]], Awaitable[None]], *, batch: int, limit: int) -> None:
        self._send = send
        self._batch = batch
        self._limit = limit
        self._waiting: deque[_T] = deque(maxlen=limit)
        self._something = asyncio.Event()
        self.dropped = 0

    async def run(self) -> NoReturn:
        """Send every `FLUSH_S` while there is something, until cancelled."""
        while True:
            await self._something.wait()
            await asyncio.sleep(FLUSH_S)
            self._something.clear()
            await self._flush()

    def _put(self, entry: _T) -> None:
        if len(self._waiting) == self._limit:
            self.dropped += 1
        self._waiting.append(entry)
        self._something.set()

    async def _flush(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
            try:
                await self._send(batch)
            except StateUnavailable:
                room = self._limit - len(self._waiting)
                self.dropped += max(0, len(batch) - room)
                self._waiting.extendleft(reversed(batch[-room:] if room else []))
                self._something.set()
                return
