"""Who is there: when each client was heard of, and which streams it has open on which replica."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from combiner.adapters.connection import Connection
from combiner.adapters.tasks import LostReplies
from combiner.domain.types import Presence
from combiner.ports import Stream, StreamChange, View

_PAGE = 500


class RedisRoster:
    """`ports.Roster`."""

    def __init__(self, connection: Connection, lost: LostReplies) -> None:
        self._run = connection.run
        self._lost = lost

    async def beat(self, clients: Mapping[str, str]) -> None:
        if clients:
            await self._run("beat", clients=dict(clients))

    async def opened(self, stream: Stream) -> None:
        await self.change([StreamChange(stream, opened=True)])

    async def closed(self, stream: Stream, *, by_us: bool) -> None:
        await self.change([StreamChange(stream, opened=False, by_us=by_us)])

    async def change(self, changes: Sequence[StreamChange]) -> None:
        if changes:
            await self._run("streams_change", changes=[_row(change) for change in changes])
        for change in changes:
            if not change.opened:
                self._lost.forget(change.stream)

    async def active(self, view: View) -> list[str]:
        views = list(View) if view is View.ALL else [view, View.ALL]
        return sorted(await self._run("active", views=views))

    async def presence(self, clients: Sequence[str]) -> list[Presence]:
        found: list[Presence] = []
        for start in range(0, len(clients), _PAGE):
            page = list(clients[start : start + _PAGE])
            rows = await self._run("presence", clients=page)
            found += [_presence(client, *row) for client, row in zip(page, rows, strict=True)]
        return found

    async def list(self, *, all: bool = False) -> AsyncIterator[Presence]:
        """By name. Without `all` only those heard of within the client window."""
        names = sorted(await self._run("clients", all=all))
        for start in range(0, len(names), _PAGE):
            for presence in await self.presence(names[start : start + _PAGE]):
                yield presence

    async def want_clients(self, job_id: str, wanted: bool) -> None:
        await self._run("want_clients", job_id=job_id, wanted=wanted)

    async def forget_replica(self, replica: str) -> None:
        await self._run("forget_replica", replica=replica)


def _row(change: StreamChange) -> tuple[str | bool, ...]:
    stream = change.stream
    if ":" not in stream.stream_id:
        raise ValueError(
            f"the stream id {stream.stream_id!r} does not begin with its replica's id and a colon"
        )
    return (
        *(stream.stream_id, stream.client, stream.view, stream.era),
        *(change.opened, change.by_us, stream.name),
    )


def _presence(
    client: str, ago: int, training: str, validation: str, both: str, era: str, cut: int, name: str
) -> Presence:
    return Presence(
        client=client,
        seen_ms_ago=int(ago),
        trainer_streams=int(training) + int(both),
        validator_streams=int(validation) + int(both),
        era=era,
        cut=bool(cut),
        name=name,
    )
