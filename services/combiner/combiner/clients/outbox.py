"""What clients say, on its way to Redis: in batches, and bounded while Redis is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Final, Generic, NoReturn, TypeVar

from combiner.ports import StateUnavailable
from fedcombiner.servicekit.fairqueue import FairQueue

FLUSH_S: Final = 0.5
LIMIT_CHARS: Final = 8 << 20

_T = TypeVar("_T")


class Outbox(Generic[_T]):
    """Holds at most `limit` entries and `limit_chars` characters. When it is full, the oldest entry of the
    client that holds the most is dropped and counted.

    `send` is called with at most `batch` entries at a time, in order; they stay until it returns.
    """

    def __init__(
        self,
        send: Callable[[Sequence[_T]], Awaitable[None]],
        *,
        batch: int,
        limit: int,
        limit_chars: int = LIMIT_CHARS,
    ) -> None:
        self._send = send
        self._batch = batch
        self._limit = limit
        self._limit_chars = limit_chars
        self._waiting: FairQueue[_T] = FairQueue()
        self._something = asyncio.Event()
        self.dropped = 0

    async def run(self) -> NoReturn:
        """Send every `FLUSH_S` while there is something, until cancelled."""
        while True:
            await self._something.wait()
            await asyncio.sleep(FLUSH_S)
            self._something.clear()
            await self._flush()

    def _put(self, client: str, entry: _T, chars: int) -> None:
        waiting = self._waiting
        waiting.add(client, entry, 1 + chars)
        while len(waiting) > self._limit or waiting.size > self._limit_chars:
            waiting.remove(waiting.oldest_of(waiting.heaviest()))
            self.dropped += 1
        self._something.set()

    async def _flush(self) -> None:
        while self._waiting:
            batch = list(islice(self._waiting, self._batch))
            try:
                await self._send([entry.item for entry in batch])
            except StateUnavailable:
                self._something.set()
                return
            for entry in batch:
                if entry in self._waiting:  # else it was dropped meanwhile
                    self._waiting.remove(entry)
