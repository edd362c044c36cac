"""Clients' status messages: kept in a bounded list in Redis, for people who ask what a client last said."""

from __future__ import annotations

from collections.abc import Mapping

from combiner.clients.outbox import Outbox
from combiner.ports import Log
from fedcombiner.wire.eras import Era
from fedcombiner.wire.pb import fedn_pb2

BATCH = 500
TEXT_CHARS = 500


class Statuses(Outbox[Mapping[str, str]]):
    def __init__(self, shared_log: Log, *, limit: int = 10_000) -> None:
        super().__init__(shared_log.statuses, batch=BATCH, limit=limit)

    def note(self, client: str, status: fedn_pb2.Status, era: Era) -> None:
        entry = {
            "client": client,
            "status": status.status[:TEXT_CHARS],
            "level": fedn_pb2.LogLevel.Name(era.read_log_level(status.log_level)),
            "type": fedn_pb2.StatusType.Name(status.type)
            if status.type in fedn_pb2.StatusType.values()
            else "",
        }
        self._put(client, entry, len(entry["status"]))
