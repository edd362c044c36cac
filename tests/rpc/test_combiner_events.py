"""Events: what happens is told as it happens, and to those who look on later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from combiner.servicers import events as servicer

from fedcombiner.servicekit.errors import InvalidArgument, ResourceExhausted
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2, events_pb2, events_pb2_grpc
from tests.rpc.combiner_kit import DEADLINE, Connected, Replica, Stack, eventually, put_seed, training

Events = AsyncGenerator[events_pb2.Event, None]


async def until(
    events: Events, condition: Callable[[events_pb2.Event], bool], what: str
) -> list[events_pb2.Event]:
    """The events up to the first that meets the condition."""
    found = []
    try:
        async with asyncio.timeout(DEADLINE):
            async for event in events:
                found.append(event)
                if condition(event):
                    return found
    except TimeoutError:
        pass
    raise AssertionError(f"{what}: {[event.what for event in found]}")


async def a_round(combiner: Replica) -> str:
    """One client of two is accepted, the other says that it failed. Returns the job's id."""
    seed = await put_seed(combiner)
    async with Connected(combiner, 2) as here:
        job_id = await combiner.operator.start_job(training(seed, clients_required=1, clients_requested=2))
        tasks = await here.tasks()
        await here.clients[0].train(tasks[0], 0)
        await here.clients[1].fail(tasks[1])
        await combiner.operator.wait_job(job_id)
    return job_id


async def test_a_round_is_told_as_it_happens(combiner: Replica) -> None:
    events = combiner.operator.watch_events(1)
    watching = asyncio.create_task(until(events, lambda e: e.what == "committed", "the end of the round"))
    job_id = await a_round(combiner)
    found = await watching
    await events.aclose()
    of_job = [event for event in found if event.job_id == job_id]
    assert [event.what for event in of_job][:3] == ["queued", "running", "asked"]
    assert {event.what: list(event.clients) for event in of_job if event.clients} == {
        "received": ["c0"],
        "accepted": ["c0"],
        "failed": ["c1"],
    }
    last = of_job[-1]
    assert (last.kind, last.round_id, last.state) == (combiner_pb2.TRAINING, "1", combiner_pb2.SUCCEEDED)
    assert (last.asked, last.accepted, last.failed) == (2, 1, 1)
    assert not {"tasks", "client"} & {event.what for event in found}


async def test_the_past_is_told_to_who_asks_later(combiner: Replica) -> None:
    job_id = await a_round(combiner)
    recent = await combiner.operator.recent_events(1000, job_id=job_id)
    assert [event.what for event in recent][-1] == "committed"
    assert [event.at for event in recent] == sorted(event.at for event in recent)
    last_two = await combiner.operator.recent_events(2, job_id=job_id)
    assert [(e.what, e.at) for e in last_two] == [(e.what, e.at) for e in recent[-2:]]
    assert await combiner.operator.recent_events(10, session_id="another") == []


async def test_what_a_client_says_and_does_can_be_looked_at_alone(combiner: Replica) -> None:
    await a_round(combiner)

    async def told(what: str) -> bool:
        events = await combiner.operator.recent_events(100, client="c1")
        return what in [event.what for event in events]

    await eventually(lambda: told("status"), "what the client said")
    await eventually(lambda: told("left"), "that the client has gone")
    events = await combiner.operator.recent_events(100, client="c1")
    assert {event.what for event in events} == {"joined", "failed", "status", "left"}
    [status] = [event for event in events if event.what == "status"]
    assert (status.text, status.reason) == ("Client c1 failed to complete model update.", "WARNING")


async def test_what_clients_say_below_a_warning_is_told_when_asked_for(combiner: Replica) -> None:
    client = combiner.client("c1")
    for level in (fedn_pb2.INFO, fedn_pb2.AUDIT, fedn_pb2.WARNING):
        status = fedn_pb2.Status(
            sender=client.messages.heartbeat.sender, status=fedn_pb2.LogLevel.Name(level), log_level=level
        )
        await client.link.connector.SendStatus(status, timeout=DEADLINE)

    async def said(**about: Any) -> list[str]:
        events = await combiner.operator.recent_events(10, **about)
        return [event.text for event in events if event.what == "status"]

    async def all_there() -> bool:
        return len(await said(client="c1")) == 3

    await eventually(all_there, "all three")
    assert await said(messages=True) == ["INFO", "AUDIT", "WARNING"]
    assert await said() == ["WARNING"]


async def test_a_watcher_goes_on_at_another_replica_and_misses_nothing(stack: Stack) -> None:
    one, two = await stack.combiner(), await stack.combiner()
    stub: events_pb2_grpc.EventsAsyncStub = events_pb2_grpc.EventsStub(one.operator.link)
    call = stub.Watch(events_pb2.WatchEventsRequest(follow=True))
    hello = await asyncio.wait_for(call.read(), DEADLINE)
    assert hello.what == "watching"
    call.cancel()
    job_id = await a_round(two)
    stub = events_pb2_grpc.EventsStub(two.operator.link)
    request = events_pb2.WatchEventsRequest(follow=True, cursor=hello.cursor, job_id=job_id)
    whats = []
    async for event in stub.Watch(request, timeout=DEADLINE):
        whats.append(event.what)
        if event.what == "committed":
            break
    assert whats[:3] == ["watching", "queued", "running"]


async def test_a_message_that_would_command_a_terminal_arrives_as_it_was_sent(combiner: Replica) -> None:
    client = combiner.client("c1")
    text = "\x1b[2Jgone\n" + "x" * 2000
    status = fedn_pb2.Status(sender=client.messages.heartbeat.sender, status=text)
    await client.link.connector.SendStatus(status, timeout=DEADLINE)

    async def told() -> bool:
        return bool(await combiner.operator.recent_events(10, client="c1"))

    await eventually(told, "the status")
    [event] = await combiner.operator.recent_events(10, client="c1")
    assert event.text == text[:500]


@pytest.mark.parametrize(
    ("field", "value"),
    [("cursor", "x"), ("cursor", "1-0/1-0/1-0"), ("recent", 1001), ("cursor", "x" * 8_000)],
)
async def test_what_cannot_be_asked_is_refused(combiner: Replica, field: str, value: object) -> None:
    request = events_pb2.WatchEventsRequest(**{field: value})  # type: ignore[arg-type]
    stub: events_pb2_grpc.EventsAsyncStub = events_pb2_grpc.EventsStub(combiner.operator.link)
    with pytest.raises(InvalidArgument, match=field):
        await combiner.operator._list(lambda: stub.Watch(request))


async def test_watchers_are_few_and_their_places_are_given_back(
    combiner: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicer, "MOST_WATCHERS", 1)
    events = combiner.operator.watch_events(1)
    first = asyncio.create_task(anext(events))
    await put_seed(combiner)

    async def refused() -> bool:
        try:
            await combiner.operator.recent_events(1)
        except ResourceExhausted:
            return True
        return False

    await eventually(refused, "a second watcher to be refused")
    first.cancel()
    await asyncio.wait([first])
    await events.aclose()

    async def admitted() -> bool:
        return not await refused()

    await eventually(admitted, "the place to be free")
