"""The settings that `Control.Configure` may change while the stack runs: one table in Redis for all
replicas.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from combiner.ports import Event, Settings
from combiner.rounds.feed import RESYNC
from fedcombiner.servicekit.errors import InvalidArgument

log = structlog.get_logger()

MAX_CLIENTS_LIMIT = 1_000_000


def _max_clients(text: str) -> int:
    if not re.fullmatch("[0-9]{1,7}", text) or not 1 <= int(text) <= MAX_CLIENTS_LIMIT:
        raise InvalidArgument("max_clients", text, f"a whole number from 1 to {MAX_CLIENTS_LIMIT}")
    return int(text)


KNOWN: Mapping[str, Callable[[str], int]] = {"max_clients": _max_clients}


def check(values: Mapping[str, str]) -> None:
    """Raises InvalidArgument naming the first key or value that is not known."""
    for key, value in values.items():
        if key not in KNOWN:
            raise InvalidArgument("parameter", key, f"one of: {', '.join(KNOWN)}")
        KNOWN[key](value)


@dataclass
class Tuning:
    """The values in force in this process."""

    settings: Settings
    max_clients: int

    async def put(self, values: Mapping[str, str]) -> None:
        check(values)
        await self.settings.put(values)
        self.apply(values)

    async def load(self) -> None:
        """What is not valid here, because another version wrote it, is left as it is."""
        for key, value in (await self.settings.get()).items():
            try:
                self.apply({key: value})
            except InvalidArgument as error:
                log.warning("setting ignored", setting=key, reason=str(error))

    def apply(self, values: Mapping[str, str]) -> None:
        for key, value in values.items():
            if key in KNOWN:
                setattr(self, key, KNOWN[key](value))

    def concerns(self, event: Event) -> bool:
        return event.what in ("settings", RESYNC)
