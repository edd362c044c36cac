"""Clients' status messages: kept in a bounded list in Redis, for people who ask what a client last said."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping

import structlog

from combiner.ports import Log, StateUnavailable
from fedcombiner.wire.eras import Era
from fedcombiner.wire.pb import fedn_pb2

log = structlog.get_logger()

FLUSH_S = 0.5
BATCH = 500
TEXT_CHARS = 500


class Statuses:
    """Waits at most `limit` messages; when it is full the oldest is dropped and counted."""

    def __init__(self, shared_log: Log, *, limit: int = 10_000) -> None:
        self._log = shared_log
        self._waiting: deque[Mapping[str, str]] = deque(maxlen=limit)
        self._something = asyncio.Event()
        self.dropped = 0

    def note(self, client: str, status: fedn_pb2.Status, era: Era) -> None:
        if len(self._waiting) == self._waiting.maxlen:
            self.dropped += 1
        self._waiting.append(
            {
                "client": client,
                "status": status.status[:TEXT_CHARS],
                "level": fedn_pb2.LogLevel.Name(era.read_log_level(status.log_level)),
                "type": fedn_pb2.StatusType.Name(status.type)
                if status.type in fedn_pb2.StatusType.values()
                else "",
            }
        )
        self._something.set()

    async def run(self) -> None:
        while True:
            await self._something.wait()
            await asyncio.sleep(FLUSH_S)
            self._something.clear()
            await self._flush()

    async def _flush(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            try:
                await self._log.statuses(batch)
            except StateUnavailable:
                room = (self._waiting.maxlen or 0) - len(self._waiting)
                self.dropped += max(0, len(batch) - room)
                self._waiting.extendleft(reversed(batch[-room:] if room else []))
                self._something.set()
                return
