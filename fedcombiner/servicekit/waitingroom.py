"""Where refused streams spend some time, since their clients would open them again at once."""

from __future__ import annotations

import asyncio
from typing import Final

MAX_HELD: Final = 4000  # beyond that, callers are refused at once


class WaitingRoom:
    """Holds callers, at most MAX_HELD at a time."""

    def __init__(self) -> None:
        self._held = 0

    async def hold(self, seconds: float) -> None:
        if self._held >= MAX_HELD:
            return
        self._held += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._held -= 1
