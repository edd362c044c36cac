"""What happens in a stack, as its operator hears it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from fedcombiner.client.calls import Calls
from fedcombiner.wire.pb.combiner.v1 import events_pb2 as pb
from fedcombiner.wire.pb.combiner.v1 import events_pb2_grpc

if TYPE_CHECKING:
    from fedcombiner.wire.pb.combiner.v1.events_pb2_grpc import EventsAsyncStub

WATCHING: Final = "watching"


class EventsCalls(Calls):
    async def recent_events(
        self, limit: int, *, session_id: str = "", job_id: str = "", client: str = "", messages: bool = False
    ) -> list[pb.Event]:
        """The last `limit` events (at most 1000) about a session, a job, a client, or all; oldest first.

        With `messages` also what clients say that is no warning; of one client that is always told.
        """
        request = pb.WatchEventsRequest(
            recent=limit, session_id=session_id, job_id=job_id, client=client, messages=messages
        )
        return await self._list(lambda: self._events.Watch(request))

    async def watch_events(
        self,
        recent: int = 0,
        *,
        session_id: str = "",
        job_id: str = "",
        client: str = "",
        messages: bool = False,
    ) -> AsyncGenerator[pb.Event, None]:
        """The last `recent` events as `recent_events` has them, then each as it happens, until the caller has
        seen enough.

        Goes on behind the last one where the server comes back within the patience. A `resync` event stands
        for events that are no longer known.
        """
        request = pb.WatchEventsRequest(
            recent=recent,
            follow=True,
            session_id=session_id,
            job_id=job_id,
            client=client,
            messages=messages,
        )
        async with aclosing(self._watch(lambda: self._events.Watch(request))) as events:
            async for event in events:
                request.cursor = event.cursor
                if event.what != WATCHING:
                    yield event

    @property
    def _events(self) -> EventsAsyncStub:
        return events_pb2_grpc.EventsStub(self.link)
