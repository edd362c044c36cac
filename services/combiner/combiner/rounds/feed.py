"""Fan-out of the one event log to everyone in this process who waits for something."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from combiner.ports import Event, Log

RESYNC = "resync"
"""`what` of the event that says: events were missed, read again whatever you watch."""
CLIENTS = "clients"
"""The key of the events that say that clients came, told while a job wants some."""


class Subscription:
    """The events of one job or session, in order.

    Bounded: a reader that falls `limit` events behind finds one `resync` in their place.
    """

    def __init__(self, limit: int, wake: asyncio.Event | None = None) -> None:
        self._events: deque[Event] = deque()
        self._limit = limit
        self.wake = wake or asyncio.Event()

    def push(self, event: Event) -> None:
        if len(self._events) >= self._limit:
            self._events.clear()
            event = Event(seq=event.seq, what=RESYNC)
        self._events.append(event)
        self.wake.set()

    def drain(self) -> Iterator[Event]:
        """What is there now, without waiting."""
        while self._events:
            yield self._events.popleft()

    async def get(self) -> Event:
        while not self._events:
            self.wake.clear()
            await self.wake.wait()
        return self._events.popleft()


class Feed:
    """Follows the log and hands each event to those who asked for its job, its session, or for all."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._subscriptions: dict[str, set[Subscription]] = {}
        self._listeners: list[Callable[[Event], None]] = []

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with every event, in the loop; it must not block."""
        self._listeners.append(listener)

    @contextmanager
    def subscribe(
        self, key: str, *, limit: int = 10_000, wake: asyncio.Event | None = None
    ) -> Iterator[Subscription]:
        """`key` is `job:<id>`, `session:<id>` (of a session: also the events of its jobs) or CLIENTS.

        `wake` is set with every event: a reader that waits for other things too hands in its own.
        """
        subscription = Subscription(limit, wake)
        self._subscriptions.setdefault(key, set()).add(subscription)
        try:
            yield subscription
        finally:
            rest = self._subscriptions[key]
            rest.discard(subscription)
            if not rest:
                del self._subscriptions[key]

    async def run(self) -> None:
        async for event in self._log.follow():
            self.dispatch(event)

    def dispatch(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)
        if event.what == RESYNC:
            for subscriptions in self._subscriptions.values():
                for subscription in subscriptions:
                    subscription.push(event)
            return
        for key in _keys(event):
            for subscription in self._subscriptions.get(key, ()):
                subscription.push(event)


def _keys(event: Event) -> tuple[str, ...]:
    """An event of a session names its current job, and one that clients came nobody."""
    if event.what == "session":
        return (f"session:{event.session_id}",)
    return (CLIENTS,) if event.what == "client" else (f"job:{event.job_id}", f"session:{event.session_id}")
