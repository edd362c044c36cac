"""combiner.v1.Events: what happens, for people who look on."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Final

from combiner.ports import Event, History, Place, StateUnavailable
from combiner.servicers import convert
from combiner.servicers.common import Context, redis_away
from fedcombiner.servicekit.errors import InvalidArgument, ResourceExhausted
from fedcombiner.wire.pb.combiner.v1 import events_pb2 as pb

MOST_RECENT: Final = 1000
# Each holds a connection to Redis; one more is refused.
MOST_WATCHERS: Final = 50
_CURSOR: Final = re.compile(r"(\d{1,20}-\d{1,20})/(\d{1,20}-\d{1,20})")
# Levels of status messages. Each client says half a dozen others a round, which would bury what happens.
_TROUBLE: Final = frozenset({"WARNING", "ERROR"})
# How the replicas wake each other: nothing that happened.
_INTERNAL: Final = frozenset({"tasks", "client"})


class EventsServicer:
    def __init__(self, history: History) -> None:
        self._history = history
        self._watchers = 0

    async def Watch(self, request: pb.WatchEventsRequest, context: Context) -> AsyncIterator[pb.Event]:
        """The recent ones carry one cursor, which is behind all of them."""
        place = _place(request.cursor) if request.cursor else None
        if request.recent > MOST_RECENT:
            raise InvalidArgument("recent", request.recent, f"at most {MOST_RECENT}")
        try:
            with self._one_more():
                if place is None:
                    events, place = await self._history.recent(
                        request.recent, lambda event: _matches(event, request)
                    )
                    for event in events:
                        yield convert.event(event, _cursor(place))
                if not request.follow:
                    return
                yield pb.Event(what="watching", cursor=_cursor(place))
                async with aclosing(self._history.follow(place)) as news:
                    async for event, place in news:
                        if _matches(event, request):
                            yield convert.event(event, _cursor(place))
        except StateUnavailable as error:
            raise redis_away(error) from error

    @contextmanager
    def _one_more(self) -> Iterator[None]:
        if self._watchers >= MOST_WATCHERS:
            raise ResourceExhausted(f"{MOST_WATCHERS} others watch events here already; try again later")
        self._watchers += 1
        try:
            yield
        finally:
            self._watchers -= 1


def _matches(event: Event, request: pb.WatchEventsRequest) -> bool:
    if event.what == "resync":
        return True
    if event.what == "status" and not (request.messages or request.client or event.reason in _TROUBLE):
        return False
    return (
        event.what not in _INTERNAL
        and request.session_id in ("", event.session_id)
        and request.job_id in ("", event.job_id)
        and (not request.client or request.client == event.client or request.client in event.clients)
    )


def _place(cursor: str) -> Place:
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise InvalidArgument("cursor", cursor, "what an event carried")
    return Place(*match.groups())


def _cursor(place: Place) -> str:
    return f"{place.entry}/{place.status}"
