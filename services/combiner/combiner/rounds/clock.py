"""The clock of Redis, as seen from this process: deadlines mean the same moment in every replica."""

from __future__ import annotations

import time
from collections.abc import Callable

from combiner.ports import Log


class SharedClock:
    """Seconds since 1970 by Redis's clock, kept going by the local monotonic clock between two looks at
    it.
    """

    def __init__(self, log: Log, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._monotonic = monotonic
        self._offset: float | None = None

    async def sync(self) -> float:
        """Look at Redis's clock; half the round trip is taken off. Returns the time now."""
        before = self._monotonic()
        redis_s = await self._log.now_ms() / 1000
        after = self._monotonic()
        self._offset = redis_s - (before + after) / 2
        return self.now()

    def now(self) -> float:
        if self._offset is None:
            raise RuntimeError("the shared clock was not synchronised yet")
        return self._monotonic() + self._offset
