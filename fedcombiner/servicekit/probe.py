"""Looking, again and again, whether a back end is there."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from fedcombiner.servicekit.status import BackendStatus

EVERY_S: Final = 5.0
EVERY_S_WHILE_AWAY: Final = 0.5


async def keep_probing(
    backend: BackendStatus,
    check: Callable[[], Awaitable[object]],
    *,
    away: type[Exception] | tuple[type[Exception], ...],
) -> None:
    """Until cancelled: the back end is down while `check` raises one of `away`, else up."""
    while True:
        try:
            await check()
        except away as error:
            backend.mark_down(error)
        else:
            backend.mark_up()
        await asyncio.sleep(EVERY_S if backend.up else EVERY_S_WHILE_AWAY)
