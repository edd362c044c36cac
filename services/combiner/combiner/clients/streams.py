"""The client streams of this replica: registered in the roster, and given their tasks as soon as those exist.

One task registers openings and closings, in order; one hands out tasks. While Redis is away both wait and
streams stay open: a client that is connected is not cut off because of our back end.

Bounds: a stream holds the tasks of one client, of which there are few (one for each open job, and at most 100
raw messages); `StreamChanges` bounds the queue of openings and closings.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

import structlog

from combiner.clients.streamchanges import StreamChanges
from combiner.ports import Event, Shared, StateUnavailable, Stream, Task, View
from combiner.rounds.feed import RESYNC, Feed
from fedcombiner.servicekit.backoff import Backoff
from fedcombiner.servicekit.errors import Unavailable

log = structlog.get_logger()

BATCH = 300
GOING_AWAY = "this combiner is going away; connect again"
# The oldest of a client's streams ends when it opens more. Clients up to 0.7 hold two, and open them again
# before they notice that the old ones are dead.
MAX_STREAMS_OF_CLIENT = 8
TOO_MANY = f"this client has opened {MAX_STREAMS_OF_CLIENT} newer streams; close the ones that are not read"
# Streams on which nothing is ever sent.
MAX_IDLE = 1000
TOO_MANY_IDLE = f"{MAX_IDLE} newer streams of this kind are open; nothing is sent on them"


class Replaced(Unavailable):
    """A stream was ended in favour of newer ones."""


class LocalStream:
    """One open stream: what is to be sent on it, and whether we are about to end it."""

    __slots__ = ("_ended", "_tasks", "_waiter", "info")

    def __init__(self, info: Stream) -> None:
        self.info = info
        self._tasks: deque[Task] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._ended: Unavailable | None = None

    def push(self, task: Task) -> None:
        self._tasks.append(task)
        self._notify()

    def end(self, why: Unavailable) -> None:
        self._ended = self._ended or why
        self._notify()

    def _notify(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def tasks(self) -> AsyncIterator[Task]:
        """Tasks as they come.

        Raises Unavailable when our side ends the stream: never a clean end (spec: traps 8).
        """
        while True:
            while self._tasks and not self._ended:
                yield self._tasks.popleft()
            if self._ended:
                raise self._ended
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter


class StreamHub:
    def __init__(self, replica: str, shared: Shared, feed: Feed) -> None:
        self._replica = replica
        self._shared = shared
        self._numbers = itertools.count(1)
        self._streams: dict[str, LocalStream] = {}
        self._by_client: dict[str, dict[str, None]] = {}  # client -> ids of its streams, oldest first
        self._idle: dict[LocalStream, None] = {}  # the oldest first
        self._changes = StreamChanges()
        self._changed = asyncio.Event()
        self._registering = asyncio.Lock()
        self._hungry: set[str] = set()  # clients whose queue has something
        self._fed = asyncio.Event()
        self._draining = False
        self._left = asyncio.Event()
        feed.listen(self._on_event)

    def __len__(self) -> int:
        return len(self._streams)

    def clients(self) -> int:
        return len(self._by_client)

    @property
    def unregistered(self) -> int:
        """Openings and closings that Redis does not know of yet."""
        return len(self._changes)

    @asynccontextmanager
    async def open(self, client: str, view: View, era: str, name: str = "") -> AsyncIterator[LocalStream]:
        """A stream for as long as the block runs; of many of one client the oldest ends.

        Raises Unavailable while draining.
        """
        self._refuse_while_draining()
        stream = LocalStream(Stream(f"{self._replica}:{next(self._numbers)}", client, view, era, name))
        self._streams[stream.info.stream_id] = stream
        self._by_client.setdefault(client, {})[stream.info.stream_id] = None
        self._end_oldest(client)
        self._opened(stream.info)
        try:
            yield stream
        finally:
            self._remove(stream)

    async def idle(self) -> AsyncIterator[None]:
        """A stream on which nothing is sent, for as long as we are not draining. Raises Unavailable then."""
        self._refuse_while_draining()
        stream = LocalStream(Stream(f"{self._replica}:{next(self._numbers)}", "", View.ALL, ""))
        self._idle[stream] = None
        if len(self._idle) > MAX_IDLE:
            next(iter(self._idle)).end(Replaced(TOO_MANY_IDLE))
        try:
            async for _ in stream.tasks():
                yield
        finally:
            self._idle.pop(stream, None)

    def _end_oldest(self, client: str) -> None:
        ids = list(self._by_client[client])
        for stream_id in ids[:-MAX_STREAMS_OF_CLIENT]:
            self._streams[stream_id].end(Replaced(TOO_MANY))

    def _refuse_while_draining(self) -> None:
        if self._draining:
            raise Unavailable(GOING_AWAY)

    def _remove(self, stream: LocalStream) -> None:
        del self._streams[stream.info.stream_id]
        ids = self._by_client[stream.info.client]
        del ids[stream.info.stream_id]
        if not ids:
            del self._by_client[stream.info.client]
        self._closed(stream.info)

    def _opened(self, stream: Stream) -> None:
        self._changes.opened(stream)
        self._changed.set()

    def _closed(self, stream: Stream) -> None:
        self._changes.closed(stream, by_us=self._draining)
        self._changed.set()

    def drain(self) -> None:
        """End every stream with UNAVAILABLE and take no new ones."""
        self._draining = True
        for stream in [*self._streams.values(), *self._idle]:
            stream.end(Unavailable(GOING_AWAY))

    def leave(self) -> None:
        """The port closes: nobody who is refused needs to be held any more."""
        self._left.set()

    async def hold(self, seconds: float) -> None:
        """While draining, keep somebody who would come back at once, until the port closes."""
        if self._draining:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._left.wait()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._register(), name="register streams")
            group.create_task(self._hand_out(), name="hand out tasks")

    async def settle(self) -> None:
        """After `drain`: register what is left, best effort."""
        try:
            while self._changes:
                await self._register_some()
        except StateUnavailable:
            log.warning("streams could not be signed off; the others will notice")

    # --- the roster

    async def _register(self) -> None:
        delays = Backoff(initial=0.05, maximum=2.0).delays()
        while True:
            try:
                while self._changes:
                    await self._register_some()
            except StateUnavailable:
                await asyncio.sleep(next(delays))
                continue
            delays = Backoff(initial=0.05, maximum=2.0).delays()
            self._changed.clear()
            await self._changed.wait()

    async def _register_some(self) -> None:
        """The next changes, in order and in one step. They stay queued until Redis has confirmed them."""
        async with self._registering:
            changes = self._changes.batch(BATCH)
            await self._shared.roster.change(changes)
            self._changes.confirm(changes)
        self._feed_clients({change.stream.client for change in changes if change.opened})

    # --- tasks

    def _on_event(self, event: Event) -> None:
        if event.what == "tasks":
            self._feed_clients(event.clients)
        elif event.what == RESYNC:
            for stream in self._streams.values():
                self._opened(stream.info)

    def _feed_clients(self, clients: Iterable[str]) -> None:
        ours = [client for client in clients if client in self._by_client]
        if ours:
            self._hungry.update(ours)
            self._fed.set()

    async def _hand_out(self) -> None:
        delays = Backoff(initial=0.05, maximum=2.0).delays()
        while True:
            await self._fed.wait()
            self._fed.clear()
            clients, self._hungry = self._hungry, set()
            try:
                await self._claim_for(sorted(clients))
            except StateUnavailable:
                self._feed_clients(clients)
                await asyncio.sleep(next(delays))
                continue
            delays = Backoff(initial=0.05, maximum=2.0).delays()

    async def _claim_for(self, clients: list[str]) -> None:
        streams = [
            self._streams[stream_id].info
            for client in clients
            # The newest first: of a client that came back, an older one may be read by nobody.
            for stream_id in reversed(self._by_client.get(client, {}))
        ]
        for start in range(0, len(streams), BATCH):
            for info, task in await self._shared.tasks.claim(streams[start : start + BATCH]):
                self._deliver(info, task)

    def _deliver(self, info: Stream, task: Task) -> None:
        stream = self._streams.get(info.stream_id)
        if stream is None:
            # It closed while the task was on its way: closing it once more gives the task back.
            self._closed(info)
        else:
            stream.push(task)
