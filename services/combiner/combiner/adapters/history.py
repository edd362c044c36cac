"""What happened: the log and the clients' status messages, merged by the clock of Redis, for who looks on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace
from typing import Any

from combiner.adapters.connection import Connection, within
from combiner.adapters.log import BLOCK_S, event_of, order
from combiner.ports import Event, Place
from fedcombiner.servicekit.redislink import COMMAND_S

_PAGE = 500
_Entry = tuple[str, Mapping[str, str]]


class RedisHistory:
    """`ports.History`. Both streams take their ids from one clock, which is order enough for people."""

    def __init__(self, connection: Connection, *, block_s: float = BLOCK_S) -> None:
        self._connection = connection
        self._log = connection.key("log")
        self._said = connection.key("said")
        self._block_s = block_s

    async def recent(self, limit: int, wanted: Callable[[Event], bool]) -> tuple[list[Event], Place]:
        place = Place(await self._tail(self._log), await self._tail(self._said))
        changes = await self._back(self._log, place.entry, event_of, limit, wanted)
        said = await self._back(self._said, place.status, status_of, limit, wanted)
        found = sorted([*changes, *said], key=lambda event: order(event.seq))
        return found[-limit:], place

    async def follow(self, place: Place) -> AsyncGenerator[tuple[Event, Place], None]:
        number = await self._number(place.entry)
        reader = self._connection.dedicated()
        try:
            while True:
                for key, (entry, fields) in await self._read(reader, place):
                    if key == self._said:
                        place = replace(place, status=entry)
                        yield status_of(entry, fields), place
                        continue
                    if int(fields["n"]) != number + 1:
                        yield Event(entry, "resync", at_ms=order(entry)[0]), place
                    number = int(fields["n"])
                    place = replace(place, entry=entry)
                    yield event_of(entry, fields), place
        finally:
            await reader.aclose()

    async def _read(self, reader: Any, place: Place) -> list[tuple[str, _Entry]]:
        """What is behind the place in either stream, in order; nothing if nothing comes for a while."""
        places = {self._log: place.entry, self._said: place.status}
        async with within(self._block_s + COMMAND_S):
            reply = await reader.xread(places, count=_PAGE, block=int(self._block_s * 1000))
        entries = [(key, entry) for key, found in reply for entry in found]
        return sorted(entries, key=lambda item: order(item[1][0]))

    async def _number(self, entry: str) -> int:
        """The number of an entry of the log; -1 if it is no longer known, 0 of the place before the first."""
        if entry == "0-0":
            return 0
        found = await self._connection.command("XRANGE", self._log, entry, entry)
        return int(found[0][1]["n"]) if found else -1

    async def _tail(self, key: str) -> str:
        newest = await self._connection.command("XREVRANGE", key, "+", "-", "COUNT", 1)
        return str(newest[0][0]) if newest else "0-0"

    async def _back(
        self,
        key: str,
        tail: str,
        event: Callable[[str, Mapping[str, str]], Event],
        limit: int,
        wanted: Callable[[Event], bool],
    ) -> list[Event]:
        """The last `limit` wanted ones up to the tail, newest first."""
        found: list[Event] = []
        while tail and len(found) < limit:
            page: list[_Entry] = await self._connection.command("XREVRANGE", key, tail, "-", "COUNT", _PAGE)
            found += [made for made in (event(*entry) for entry in page) if wanted(made)]
            tail = f"({page[-1][0]}" if len(page) == _PAGE else ""
        return found[:limit]


def status_of(entry: str, fields: Mapping[str, str]) -> Event:
    """`fields`: as `Log.statuses` was given them."""
    return Event(
        seq=entry,
        what="status",
        client=fields.get("client", ""),
        reason=fields.get("level", ""),
        text=fields.get("status", ""),
        at_ms=order(entry)[0],
    )
