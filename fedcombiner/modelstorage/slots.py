"""Places for transfers."""

import asyncio
from types import TracebackType


class Slots:
    """A bounded number of places; who finds none waits, first come first served. Use as `async with`."""

    def __init__(self, places: int) -> None:
        self._free = asyncio.Semaphore(places)
        self.running = 0
        self.waiting = 0

    async def __aenter__(self) -> None:
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.running -= 1
        self._free.release()
