"""Who hears which event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from combiner.ports import Event
from combiner.rounds.feed import CLIENTS, RESYNC, Feed, Subscription


class OneLog:
    """A log that tells what it is given, then ends."""

    def __init__(self, *events: Event) -> None:
        self._events = events

    async def follow(self) -> AsyncIterator[Event]:
        for event in self._events:
            yield event


def words(subscription: Subscription) -> list[str]:
    return [event.what for event in subscription.drain()]


def event(what: str, **fields: str) -> Event:
    return Event(seq="0-0", what=what, **fields)  # type: ignore[arg-type]


async def test_each_hears_of_its_own() -> None:
    told = (
        event("queued", job_id="j1", session_id="s1"),
        event("session", session_id="s1", job_id="j1"),
        event("client", client="c1"),
        event("tasks", job_id="j1"),
        event("accepted", job_id="j2"),
        event(RESYNC),
    )
    feed = Feed(OneLog(*told))  # type: ignore[arg-type]
    heard: list[str] = []
    feed.listen(lambda event: heard.append(event.what))
    with (
        feed.subscribe("job:j1") as job,
        feed.subscribe("session:s1") as session,
        feed.subscribe(CLIENTS) as clients,
        feed.subscribe("job:j2") as one,
        feed.subscribe("job:j2") as two,
    ):
        await feed.run()
        assert words(job) == ["queued", "tasks", RESYNC]
        assert words(session) == ["queued", "session", RESYNC]
        assert words(clients) == ["client", RESYNC]
        assert words(one) == words(two) == ["accepted", RESYNC]
    assert heard == [event.what for event in told]


async def test_who_left_hears_nothing_more() -> None:
    feed = Feed(OneLog())  # type: ignore[arg-type]
    with feed.subscribe("job:j1") as stays:
        with feed.subscribe("job:j1") as left:
            pass
        feed.dispatch(event("running", job_id="j1"))
        assert (words(stays), words(left)) == (["running"], [])
    assert not feed._subscriptions


async def test_too_many_unread_events_become_one_resync() -> None:
    subscription = Subscription(limit=3)
    for _ in range(3):
        subscription.push(event("accepted"))
    subscription.push(event("rejected"))
    subscription.push(event("failed"))
    assert words(subscription) == [RESYNC, "failed"]


async def test_get_waits_for_an_event() -> None:
    subscription = Subscription(limit=10)
    getting = asyncio.ensure_future(subscription.get())
    await asyncio.sleep(0)
    assert not getting.done()
    subscription.push(event("running"))
    subscription.push(event("ended"))
    assert (await getting).what == "running"
    assert (await subscription.get()).what == "ended"


async def test_two_subscriptions_can_share_one_wake() -> None:
    feed = Feed(OneLog())  # type: ignore[arg-type]
    with feed.subscribe("job:j1") as job, feed.subscribe(CLIENTS, wake=job.wake):
        feed.dispatch(event("client"))
        assert job.wake.is_set()
