"""Task queues: what is handed to which stream, and what happens to it when that stream is gone."""

from __future__ import annotations

import json

import pytest
from combiner.adapters.state import RedisState
from combiner.domain.types import ClientState, Kind
from combiner.ports import Ask, Stream, Task, View

from tests.contract.state_kit import (
    Bench,
    claimed,
    client_state,
    closed,
    following,
    job_of,
    opened,
    receive,
    twice,
)


async def ids(state: RedisState, *streams: Stream) -> list[str]:
    return [task.task_id for _, task in await state.tasks.claim(streams)]


async def stream_of(bench: Bench, state: RedisState, client: str = "c1", view: View = View.ALL) -> Stream:
    stream = bench.stream(client, view)
    await state.roster.opened(stream)
    return stream


async def test_a_task_says_what_the_client_needs(bench: Bench, state: RedisState) -> None:
    stream = await stream_of(bench, state)
    lease = await claimed(state)
    await state.jobs.open(lease, [Ask("c1", "t1")], 60_000, '{"round_id": "ü"}')
    [(to, task)] = await state.tasks.claim([stream])
    assert to is stream
    assert json.loads(task.data) == {"round_id": "ü", "_task_id": "t1"}
    assert task == Task("t1", "c1", Kind.TRAINING, "j1", "", "seed", task.data)


async def test_empty_task_data_is_an_object_too(bench: Bench, state: RedisState) -> None:
    stream = await stream_of(bench, state)
    await state.jobs.open(await claimed(state), [Ask("c1", 't"1')], 60_000, "{}")
    [(_, task)] = await state.tasks.claim([stream])
    assert json.loads(task.data) == {"_task_id": 't"1'}


async def test_a_task_is_handed_out_once(bench: Bench, state: RedisState) -> None:
    one, two = await stream_of(bench, state), await stream_of(bench, state)
    await opened(state, ["c1"])
    assert await state.tasks.claim([]) == []
    assert await ids(state, one, two) == ["t-j1-c1"]
    assert await ids(state, one, two) == []
    assert await ids(bench.state(), two) == []


async def test_hundreds_of_streams_are_served_in_one_step(bench: Bench, state: RedisState) -> None:
    streams = [await stream_of(bench, state, f"c{n}") for n in range(500)]
    await opened(state, [f"c{n}" for n in range(500)])
    await ids(state, await stream_of(bench, state, "somebody"))  # the script is loaded
    bench.raw.config_resetstat()
    assert len(await ids(state, *streams)) == 500
    assert bench.raw.info("commandstats")["cmdstat_evalsha"]["calls"] == 1


@pytest.mark.parametrize(
    ("kind", "view", "shown"),
    [
        (Kind.TRAINING, View.TRAINING, True),
        (Kind.TRAINING, View.VALIDATION, False),
        (Kind.TRAINING, View.ALL, True),
        (Kind.VALIDATION, View.TRAINING, False),
        (Kind.VALIDATION, View.VALIDATION, True),
        (Kind.VALIDATION, View.ALL, True),
        (Kind.INFERENCE, View.TRAINING, False),
        (Kind.INFERENCE, View.VALIDATION, True),
        (Kind.INFERENCE, View.ALL, True),
    ],
)
async def test_each_view_shows_its_tasks(
    bench: Bench, state: RedisState, kind: Kind, view: View, shown: bool
) -> None:
    stream = await stream_of(bench, state, view=view)
    await opened(state, ["c1"], kind=kind)
    assert await ids(state, stream) == (["t-j1-c1"] if shown else [])


async def test_tasks_come_in_the_order_in_which_they_were_asked(bench: Bench) -> None:
    state = bench.state(max_running_jobs=20)
    stream = await stream_of(bench, state)
    for number in range(12):
        await opened(state, ["c1"], f"j{number}")
    assert await ids(state, stream) == [f"t-j{number}-c1" for number in range(12)]


async def test_a_stream_that_is_not_open_gets_nothing(bench: Bench, state: RedisState) -> None:
    stream = bench.stream("c1")
    await opened(state, ["c1"])
    assert await ids(state, stream) == []
    await state.roster.opened(stream)
    await state.roster.closed(stream, by_us=True)
    assert await ids(state, stream) == []


@pytest.mark.parametrize("left", ["answered", "failed", "closed", "cancelled"])
async def test_tasks_leave_the_queue(bench: Bench, state: RedisState, left: str) -> None:
    stream = await stream_of(bench, state)
    lease = await opened(state, ["c1"])
    if left == "answered":
        await receive(state, "c1", "u1")
    elif left == "failed":
        assert await state.jobs.fail_client(client="c1", task_id="t-j1-c1", job_id="", reason="x", detail="")
    elif left == "closed":
        await closed(state, lease)
    else:
        await state.jobs.cancel("j1", "")
    assert await ids(state, stream) == []
    assert not bench.raw.exists(bench.key("tasks:c1"))


async def test_a_task_comes_again_on_the_next_stream(bench: Bench, state: RedisState) -> None:
    await opened(state, ["c1"])
    for _ in range(3):
        stream = await stream_of(bench, state)
        assert await ids(state, stream) == ["t-j1-c1"]
        await twice(lambda s=stream: state.roster.closed(s, by_us=False))
    job = await job_of(state)
    assert (job.clients["c1"].state, job.clients["c1"].reason) == (ClientState.FAILED, "client_lost")
    assert await ids(state, await stream_of(bench, state)) == []
    # it can still be answered while the job is open
    await receive(state, "c1", "u1", "", task_id="t-j1-c1")
    assert await client_state(state, "c1") is ClientState.RECEIVED


async def test_deliveries_that_we_cut_are_not_counted(bench: Bench) -> None:
    state = bench.state(max_deliveries=1)
    await opened(state, ["c1"])
    for number in range(4):
        stream = await stream_of(bench, state)
        assert await ids(state, stream) == ["t-j1-c1"]
        if number % 2:
            await state.roster.forget_replica("r1")
        else:
            await state.roster.closed(stream, by_us=True)
    assert await client_state(state, "c1") is ClientState.ASKED
    stream = await stream_of(bench, state)
    await ids(state, stream)
    await state.roster.closed(stream, by_us=False)
    assert await client_state(state, "c1") is ClientState.FAILED


async def test_a_stream_that_closes_leaves_other_streams_tasks_alone(bench: Bench, state: RedisState) -> None:
    one, two = await stream_of(bench, state), await stream_of(bench, state)
    await opened(state, ["c1"])
    assert await ids(state, one) == ["t-j1-c1"]
    await state.roster.closed(two, by_us=False)
    assert await ids(state, one, await stream_of(bench, state)) == []


async def test_another_open_stream_hears_of_a_task_that_came_back(bench: Bench, state: RedisState) -> None:
    one, two = await stream_of(bench, state), await stream_of(bench, state)
    await opened(state, ["c1"])
    async with following(state) as log:
        await ids(state, one)
        await state.roster.closed(one, by_us=False)
        await log.until("the tasks event", lambda: len(log.events) == 2)
    assert (log.events[1].what, log.events[1].clients) == ("tasks", ("c1",))
    assert await ids(state, two) == ["t-j1-c1"]


async def test_asked_clients_are_named_to_those_who_have_their_streams(state: RedisState) -> None:
    names = [f"c{number}" for number in range(450)]
    async with following(state) as log:
        await opened(state, names)
        await log.until("all tasks events", lambda: log.words().count("tasks") == 3)
    told = [client for event in log.events for client in event.clients]
    assert sorted(told) == sorted(names)
    assert {event.job_id for event in log.events if event.what == "tasks"} == {"j1"}


# --- messages without a job


async def test_a_raw_message_is_delivered_as_it_is(bench: Bench, state: RedisState) -> None:
    stream = await stream_of(bench, state)
    raw = bytes(range(256))
    async with following(state) as log:
        assert await twice(
            lambda: state.tasks.put_raw(client="c1", kind=Kind.TRAINING, task_id="x1", raw=raw)
        )
        await log.until("the tasks event", lambda: "tasks" in log.words())
    assert log.events[1].clients == ("c1",)
    assert await state.tasks.claim([stream]) == [
        (stream, Task("x1", "c1", Kind.TRAINING, "", "", "", "", raw))
    ]
    assert await ids(state, stream) == []


async def test_an_answer_to_a_raw_message_ends_it(bench: Bench, state: RedisState) -> None:
    stream = await stream_of(bench, state)
    await state.tasks.put_raw(client="c1", kind=Kind.TRAINING, task_id="x1", raw=b"1")
    await ids(state, stream)
    assert (await receive(state, "c2", "u0", "", task_id="x1")).reason == "not_asked"
    assert bench.raw.exists(bench.key("raw:c1:x1"))  # another client cannot end it
    assert (await receive(state, "c1", "u1", "", task_id="x1")).reason == "not_asked"
    assert not bench.raw.exists(bench.key("raw:c1:x1"), bench.key("tasks:c1"))


async def test_raw_messages_need_a_known_client(state: RedisState) -> None:
    assert not await state.tasks.put_raw(client="c1", kind=Kind.TRAINING, task_id="x1", raw=b"")


async def test_of_too_many_raw_messages_the_oldest_go(bench: Bench) -> None:
    state = bench.state(max_raw=3)
    stream = await stream_of(bench, state)
    await opened(state, ["c1"])
    for number in range(5):
        await state.tasks.put_raw(client="c1", kind=Kind.TRAINING, task_id=f"x{number}", raw=b"1")
    assert await ids(state, stream) == ["t-j1-c1", "x2", "x3", "x4"]
    assert not bench.raw.exists(bench.key("raw:c1:x0"), bench.key("raw:c1:x1"))


async def test_raw_messages_expire(bench: Bench, state: RedisState) -> None:
    stream = await stream_of(bench, state)
    await state.tasks.put_raw(client="c1", kind=Kind.TRAINING, task_id="x1", raw=b"1")
    assert 3_590 < bench.raw.ttl(bench.key("raw:c1:x1")) <= 3_600
    bench.raw.delete(bench.key("raw:c1:x1"))
    assert await ids(state, stream) == []
    assert not bench.raw.exists(bench.key("tasks:c1"))


async def test_a_raw_message_that_nobody_takes_is_given_up(bench: Bench) -> None:
    state = bench.state(max_deliveries=1)
    stream = await stream_of(bench, state)
    await state.tasks.put_raw(client="c1", kind=Kind.VALIDATION, task_id="x1", raw=b"1")
    assert await ids(state, stream) == ["x1"]
    await state.roster.closed(stream, by_us=False)
    assert not bench.raw.exists(bench.key("raw:c1:x1"), bench.key("tasks:c1"))
