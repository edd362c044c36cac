"""The clock of Redis, as seen from this process: deadlines mean the same moment in every replica."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog

from combiner.ports import Log

STEP_S: Final = 0.5  # a larger change is not drift: somebody set the clock, or another machine is Redis now

log = structlog.get_logger()


class SharedClock:
    """Seconds since 1970 by Redis's clock, kept going by the local monotonic clock between two looks at
    it. `steps` counts how often Redis's clock was set since the first look.
    """

    def __init__(self, log: Log, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._monotonic = monotonic
        self._offset: float | None = None
        self.steps = 0

    async def sync(self) -> float:
        """Look at Redis's clock; half the round trip is taken off. Returns the time now.

        A difference that the round trip may have made changes nothing, so a slow answer does no harm.
        """
        before = self._monotonic()
        redis_s = await self._log.now_ms() / 1000
        after = self._monotonic()
        offset = redis_s - (before + after) / 2
        if self._offset is None:
            self._offset = offset
        elif abs(offset - self._offset) > (after - before) / 2:
            self._set(offset, offset - self._offset)
        return self.now()

    def _set(self, offset: float, change: float) -> None:
        self._offset = offset
        if abs(change) > STEP_S:
            self.steps += 1
            log.warning("the clock of Redis was set; deadlines move with it", seconds=round(change, 3))

    def now(self) -> float:
        if self._offset is None:
            raise RuntimeError("the shared clock was not synchronised yet")
        return self._monotonic() + self._offset
