"""Watches how full Redis is: removes ended work before it is full, and says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, NoReturn

import structlog

from combiner.domain.retention import PURGE_AT, REFUSE_AT
from combiner.ports import Memory, StateUnavailable, Upkeep

log = structlog.get_logger()

EVERY_S: Final = 10.0
SAID_EVERY_S: Final = 3600.0
_PURGED_AT_ONCE: Final = 20


class MemoryWatch:
    """Every replica has one: removing is safe however many do it.

    Each end of a job removes as much as the job brought; this is for what grows between the ends.
    """

    def __init__(self, upkeep: Upkeep, clock: Callable[[], float] = time.monotonic) -> None:
        self._upkeep = upkeep
        self._clock = clock
        self._said_at = -SAID_EVERY_S
        self._said: Memory | None = None
        self._refusing = False
        self.memory = Memory(0, 0, 0, 0)
        """As it was when Redis answered last."""

    async def run(self) -> NoReturn:
        while True:
            with suppress(StateUnavailable):
                await self.look()
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        memory = await self._upkeep.memory()
        while memory.part > PURGE_AT and await self._upkeep.purge(_PURGED_AT_ONCE):
            memory = await self._upkeep.memory()
        self.memory = memory
        self._say_what_went()
        self._say_whether_new_work_begins()

    def status(self) -> Mapping[str, object]:
        """For /statusz."""
        return {
            "used_bytes": self.memory.used,
            "max_bytes": self.memory.maximum,
            "takes_new_work": not self._refusing,
            "removed_early": self.memory.removed_early,
            "names_refused": self.memory.names_refused,
        }

    def _say_what_went(self) -> None:
        """Once an hour. What went before this process began is not news."""
        now, before = self.memory, self._said
        if before is None:
            self._said = now
            return
        removed, refused = now.removed_early - before.removed_early, now.names_refused - before.names_refused
        if (removed <= 0 and refused <= 0) or self._clock() - self._said_at < SAID_EVERY_S:
            return
        self._said, self._said_at = now, self._clock()
        log.warning(
            "Redis is filling: ended jobs and sessions were removed early, or new client names refused; "
            "raise its maxmemory to keep more",
            removed=removed,
            names_refused=refused,
            used=now.used,
            maxmemory=now.maximum,
        )

    def _say_whether_new_work_begins(self) -> None:
        refusing = self.memory.part > REFUSE_AT
        if refusing and not self._refusing:
            log.error(
                "Redis is nearly full: new jobs, sessions and models are refused until there is room; "
                "remove models (combiner model prune), cancel what is queued, or raise its maxmemory",
                used=self.memory.used,
                maxmemory=self.memory.maximum,
            )
        elif self._refusing and not refusing:
            log.info("there is room in Redis again", used=self.memory.used, maxmemory=self.memory.maximum)
        self._refusing = refusing
