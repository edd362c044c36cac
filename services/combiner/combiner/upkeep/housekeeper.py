"""Collects garbage now and then, on one replica at a time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog

from combiner.ports import StateUnavailable, Upkeep
from combiner.upkeep.garbage import Garbage
from fedcombiner.modelstorage.store import STORE_AWAY

log = structlog.get_logger()

HOLD_S: Final = 60.0
"""Whose turn it is holds it so long, and longer by each thing that it removes; then another may take it."""


class Housekeeper:
    """`every` seconds, counted from the end of the last time on any replica."""

    def __init__(
        self, replica: str, upkeep: Upkeep, garbage: Garbage, every: float, removed: Callable[[str], None]
    ) -> None:
        self._replica = replica
        self._upkeep = upkeep
        self._garbage = garbage
        self._every_ms = round(every * 1000)
        self._removed = removed

    async def run(self) -> None:
        """Until cancelled. What fails because a back end is away is done the next time."""
        while True:
            try:
                wait_ms = await self._begin()
                if not wait_ms:
                    await self._clean()
                    await self._upkeep.done(self._replica, every_ms=self._every_ms)
                    wait_ms = self._every_ms
            except (StateUnavailable, *STORE_AWAY) as error:
                log.warning("house-keeping was interrupted", error=str(error))
                wait_ms = self._every_ms
            await asyncio.sleep(wait_ms / 1000)

    async def _begin(self) -> int:
        return await self._upkeep.begin(self._replica, hold_ms=round(HOLD_S * 1000), every_ms=self._every_ms)

    async def _clean(self) -> None:
        loop = asyncio.get_running_loop()
        counts: Counter[str] = Counter()
        held_at = loop.time()
        async for removal in self._garbage.collect(dry_run=False):
            counts[removal.kind] += 1
            self._removed(removal.kind)
            log.debug("removed", kind=removal.kind, id=removal.id, why=removal.why)
            if loop.time() - held_at > HOLD_S / 3:
                held_at = loop.time()
                if await self._begin():
                    return  # another replica goes on: this one was held up for too long
        if counts:
            log.info("house-keeping done", **counts)
