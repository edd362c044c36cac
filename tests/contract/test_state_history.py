"""What happened, for who looks on: the changes and the clients' messages, in one order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from combiner.adapters.state import RedisState
from combiner.ports import Event, Place, StreamChange, View

from tests.contract.state_kit import Bench, eventually, new_job


def anything(event: Event) -> bool:
    return event.what not in ("tasks", "client")


def told(events: list[Event]) -> list[str]:
    return [event.text or event.what for event in events]


@asynccontextmanager
async def reading(state: RedisState, place: Place) -> AsyncIterator[list[tuple[Event, Place]]]:
    found: list[tuple[Event, Place]] = []

    async def read() -> None:
        async for entry in state.history.follow(place):
            found.append(entry)

    task = asyncio.create_task(read())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.wait([task])


async def says(state: RedisState, text: str, client: str = "c1") -> None:
    await state.log.statuses([{"client": client, "status": text, "level": "INFO", "type": "LOG"}])


async def tick(state: RedisState) -> None:
    """Until Redis's clock shows another millisecond."""
    now = await state.log.now_ms()
    while await state.log.now_ms() == now:
        pass


async def test_nothing_has_happened_in_an_empty_state(state: RedisState) -> None:
    assert await state.history.recent(10, anything) == ([], Place())


async def test_the_recent_past_is_merged_by_time_and_cut(state: RedisState) -> None:
    await state.jobs.submit(new_job("j1"))
    await tick(state)
    await says(state, "one")
    await tick(state)
    await state.jobs.cancel("j1", "by hand")
    await tick(state)
    await says(state, "two")
    events, place = await state.history.recent(10, anything)
    assert told(events) == ["queued", "one", "cancelled", "two"]
    assert (events[1].client, events[1].reason) == ("c1", "INFO")
    assert (events[2].kind, events[2].round_id, events[2].reason) == ("training", "1", "by hand")
    assert (place.entry, place.status) == (events[2].seq, events[3].seq)
    assert told((await state.history.recent(2, anything))[0]) == ["cancelled", "two"]
    assert (await state.history.recent(0, anything))[0] == []


async def test_what_is_wanted_is_found_far_back(state: RedisState) -> None:
    await state.jobs.submit(new_job("j1"))
    for number in range(1100):
        await state.settings.put({"n": str(number)})
    events, _ = await state.history.recent(5, lambda event: event.job_id == "j1")
    assert told(events) == ["queued"]


async def test_following_begins_behind_the_place_and_goes_on(state: RedisState) -> None:
    await says(state, "before")
    await state.jobs.submit(new_job("j1"))
    _, place = await state.history.recent(0, anything)
    async with reading(state, place) as found:
        await says(state, "after")
        await state.jobs.cancel("j1", "")
        await eventually("both", lambda: len(found) == 2)
    assert sorted(told([event for event, _ in found])) == ["after", "cancelled"]


async def test_every_place_is_one_to_go_on_from(state: RedisState) -> None:
    for number in range(3):
        await state.settings.put({"n": str(number)})
        await says(state, str(number))
    async with reading(state, Place()) as found:
        await eventually("all", lambda: len(found) == 6)
    for count, (_, place) in enumerate(found, 1):
        async with reading(state, place) as rest:
            await eventually("the rest", lambda rest=rest, count=count: len(rest) == 6 - count)
        assert rest == found[count:]


async def test_a_place_that_is_no_longer_known_says_resync(bench: Bench, state: RedisState) -> None:
    for number in range(4):
        await state.settings.put({"n": str(number)})
    async with reading(state, Place()) as found:
        await eventually("all", lambda: len(found) == 4)
    bench.raw.xtrim(bench.key("log"), maxlen=1, approximate=False)
    async with reading(state, found[0][1]) as rest:
        await eventually("what is left", lambda: len(rest) == 2)
    assert told([event for event, _ in rest]) == ["resync", "settings"]


async def test_readers_leave_no_connection_behind(bench: Bench, state: RedisState) -> None:
    for _ in range(10):
        async with reading(state, Place()) as found:
            await state.settings.put({"n": "1"})
            await eventually("an event", lambda found=found: bool(found))
    assert not any(client["cmd"] == "xread" for client in bench.raw.client_list())


async def test_one_cut_of_the_connection_is_mended(bench: Bench, state: RedisState) -> None:
    async with reading(state, Place()) as found:
        await state.settings.put({"n": "1"})
        await eventually("the first", lambda: len(found) == 1)
        await eventually("a reader", lambda: any(c["cmd"] == "xread" for c in bench.raw.client_list()))
        for client in bench.raw.client_list():
            if client["cmd"] == "xread":
                bench.raw.client_kill_filter(_id=client["id"])
        await state.settings.put({"n": "2"})
        await eventually("the second", lambda: len(found) == 2)


async def test_clients_come_with_their_first_stream_and_go_with_the_last(
    bench: Bench, state: RedisState
) -> None:
    training = bench.stream("c1", View.TRAINING)
    validation = bench.stream("c1", View.VALIDATION, replica="r2")
    other = bench.stream("c2", replica="r2")
    for stream in (training, validation, other):
        await state.roster.opened(stream)
    await state.roster.closed(training, by_us=False)
    await state.roster.forget_replica("r2")
    events, _ = await state.history.recent(10, anything)
    assert [(event.what, sorted(event.clients)) for event in events] == [
        ("joined", ["c1"]),
        ("joined", ["c2"]),
        ("left", ["c1", "c2"]),
    ]


async def test_a_stream_that_moves_in_one_step_is_no_going(bench: Bench, state: RedisState) -> None:
    old, new = bench.stream("c1"), bench.stream("c1")
    await state.roster.opened(old)
    await state.roster.change([StreamChange(old, opened=False), StreamChange(new, opened=True)])
    events, _ = await state.history.recent(10, anything)
    assert told(events) == ["joined"]
