"""Heartbeats: answered from memory, written to Redis in batches."""

from __future__ import annotations

import asyncio

import structlog

from combiner.ports import Roster, StateUnavailable

log = structlog.get_logger()

FLUSH_S = 0.3
BATCH = 1_000  # in one step: Redis does nothing else for a few milliseconds meanwhile


class Beats:
    """Who was heard of since the last write.

    Bound: `max_clients` names; a new name beyond that is not noted (its next beat comes in two seconds).
    While Redis is away the notes stay, one for each client: what counts is that it was heard of, not how
    often.
    """

    def __init__(self, roster: Roster, *, max_clients: int = 100_000) -> None:
        self._roster = roster
        self._max_clients = max_clients
        self._heard: dict[str, str] = {}
        self._something = asyncio.Event()
        self._waiting = False

    def note(self, client: str, era: str) -> None:
        if client in self._heard or len(self._heard) < self._max_clients:
            self._heard[client] = era
            self._something.set()

    async def run(self) -> None:
        """Write every `FLUSH_S` while there is something; cancelled at the end."""
        while True:
            await self._something.wait()
            await asyncio.sleep(FLUSH_S)
            await self.flush()

    async def flush(self) -> None:
        heard, self._heard = self._heard, {}
        self._something.clear()
        try:
            names = list(heard)
            for start in range(0, len(names), BATCH):
                await self._roster.beat({name: heard[name] for name in names[start : start + BATCH]})
        except StateUnavailable as error:
            if not self._waiting:
                log.warning("heartbeats wait for Redis", clients=len(heard), error=str(error))
            self._waiting = True
            meanwhile, self._heard = self._heard, heard
            for client, era in meanwhile.items():
                self.note(client, era)
            self._something.set()
        else:
            self._waiting = False
