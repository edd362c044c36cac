"""The log of changes: one stream, read by one blocking command in each replica."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from combiner.adapters import codec
from combiner.adapters.connection import Connection, within
from combiner.ports import Event, StateUnavailable
from fedcombiner.servicekit.redislink import COMMAND_S

BLOCK_S = 4.0
_BATCH = 500
_RECONNECT_S = (0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class _Place:
    """The last entry that was read: its id, and its number (`n`), which counts the entries without a gap."""

    entry: str
    number: int

    def is_after(self, other: _Place) -> bool:
        return order(self.entry) > order(other.entry)


_START = _Place("0-0", 0)


def order(entry: str) -> tuple[int, int]:
    ms, _, seq = entry.partition("-")
    return int(ms), int(seq)


class RedisLog:
    """`ports.Log`."""

    def __init__(self, connection: Connection, *, block_s: float = BLOCK_S) -> None:
        self._connection = connection
        self._block_s = block_s

    async def follow(self) -> AsyncIterator[Event]:
        place: _Place | None = None
        failures = 0
        reader = self._connection.dedicated()
        try:
            while True:
                try:
                    tail = await self._tail(reader)
                    failures = 0
                    # no place yet, or the log has been lost since and begins before it
                    if place is None or place.is_after(tail):
                        place = tail
                        yield _resync(place)
                    async for entry, fields in self._read(reader, place):
                        number = int(fields["n"])
                        if number != place.number + 1:
                            yield _resync(place)
                        place = _Place(entry, number)
                        yield event_of(entry, fields)
                except StateUnavailable:
                    await asyncio.sleep(_RECONNECT_S[min(failures, len(_RECONNECT_S) - 1)])
                    failures += 1
        finally:
            await reader.aclose()

    async def _read(self, reader: Any, place: _Place) -> AsyncIterator[tuple[str, Mapping[str, str]]]:
        """Entries after `place`, until none comes for a while."""
        key, last = self._connection.key("log"), place.entry
        while True:
            async with within(self._block_s + COMMAND_S):
                reply = await reader.xread({key: last}, count=_BATCH, block=int(self._block_s * 1000))
            if not reply:
                return
            for entry, fields in reply[0][1]:
                last = entry
                yield entry, fields

    async def _tail(self, reader: Any) -> _Place:
        async with within(COMMAND_S):
            newest = await reader.xrevrange(self._connection.key("log"), count=1)
        return _Place(newest[0][0], int(newest[0][1]["n"])) if newest else _START

    async def statuses(self, entries: Sequence[Mapping[str, str]]) -> None:
        """A call that is repeated because its reply was lost appends the entries twice."""
        if entries:
            flat = [[*chain.from_iterable(entry.items())] for entry in entries]
            await self._connection.run("statuses", entries=flat)

    async def now_ms(self) -> int:
        seconds, microseconds = await self._connection.command("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000


def _resync(place: _Place) -> Event:
    return Event(seq=place.entry, what="resync", at_ms=order(place.entry)[0])


def event_of(entry: str, fields: Mapping[str, str]) -> Event:
    return Event(
        seq=entry,
        what=fields["what"],
        job_id=fields.get("job_id", ""),
        session_id=fields.get("session_id", ""),
        state=fields.get("state", ""),
        client=fields.get("client", ""),
        reason=fields.get("reason", ""),
        at_ms=order(entry)[0],
        asked=int(fields.get("asked", 0)),
        accepted=int(fields.get("accepted", 0)),
        rejected=int(fields.get("rejected", 0)),
        failed=int(fields.get("failed", 0)),
        version=int(fields.get("version", 0)),
        clients=tuple(json.loads(fields.get("clients", "[]"))),
        kind=fields.get("kind", ""),
        round_id=fields.get("round_id", ""),
        record=codec.client(fields["client"], fields["record"]) if fields.get("record") else None,
    )
