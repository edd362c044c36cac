"""When our side was broken last, as far as this replica can see: who failed meanwhile is not to blame."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

LOOK_S = 1.0


async def _nobody() -> bool:
    return False


class Trouble:
    """Noted by whoever meets it: Redis or the object store does not answer, another replica is gone. A
    process that has just started may be the successor of one that broke.

    `away` says whether something is gone that clients need and this process would not miss.
    """

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        away: Callable[[], Awaitable[bool]] = _nobody,
    ) -> None:
        self._monotonic = monotonic
        self._away = away
        self._last = monotonic()

    def note(self) -> None:
        self._last = self._monotonic()

    async def look(self) -> None:
        """Before a client is blamed: what broke its call may not have been seen yet."""
        if await self._away():
            self.note()

    async def keep_looking(self) -> NoReturn:
        """Until cancelled: what is gone may be back when those who needed it say that they failed."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    @property
    def seconds_ago(self) -> float:
        """How long everything has been well."""
        return self._monotonic() - self._last
