"""Sessions: rounds one after another on the server, each recorded, whoever watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
import pytest

from fedcombiner.client.made_up import MadeUp, one_hot
from fedcombiner.client.messages import Task
from fedcombiner.client.simulate import SimulatedFleet
from fedcombiner.servicekit.errors import FailedPrecondition, InvalidArgument, NotFound
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2_grpc
from tests.rpc.combiner_kit import (
    DEADLINE,
    SHORT,
    VALIDATION_STREAM,
    WIDTH,
    Connected,
    Replica,
    Stack,
    config_of,
    eventually,
    put_seed,
    reasons,
    weights_of,
)

N = 3


@asynccontextmanager
async def clients(replica: Replica, **workload: object) -> AsyncIterator[SimulatedFleet]:
    def make(index: int) -> MadeUp:
        return MadeUp(index, one_hot(WIDTH), num_examples=lambda i: i + 1, **workload)  # type: ignore[arg-type]

    async with SimulatedFleet(N, replica.address, workload=make, heartbeat_interval=0.3) as fleet:
        yield fleet


async def test_each_round_works_on_the_last_ones_model(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with clients(combiner):
        session = await combiner.operator.start_session({"rounds": 3, "clients_required": N}, model_id=seed)
        done = await combiner.operator.wait_session(session.session_id)
    assert (done.state, done.rounds_done, done.failed_rounds) == (pb.SUCCEEDED, 3, 0)
    assert [result.round_id for result in done.results] == ["1", "2", "3"]
    parent = seed
    for result in done.results:
        assert dict(result.metrics) == {"loss": 1.0, "accuracy": 0.5}
        assert result.accepted == N
        model = await combiner.operator.describe_model(result.model_id)
        assert (model.parent_model_id, model.round_id) == (parent, result.round_id)
        assert (model.session_id, model.job_id) == (session.session_id, result.job_id)
        assert dict(model.metrics) == {"loss": 1.0, "accuracy": 0.5}
        assert len(model.client_metrics) == N
        job = await combiner.operator.get_job(result.job_id)
        assert set(await weights_of(combiner, job)) == set(range(N))
        validation = await combiner.operator.get_job(result.validation_job_id)
        assert validation.parent_model_id == result.model_id
        parent = result.model_id
    assert done.model_id == parent
    models = await combiner.operator.list_models(session_id=session.session_id)
    assert [model.model_id for model in models] == [result.model_id for result in done.results]


async def test_a_session_without_validation_trains_only(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with clients(combiner, validates=False):
        session = await combiner.operator.start_session(
            {"rounds": 2, "validate": False, "clients_required": N}, model_id=seed
        )
        done = await combiner.operator.wait_session(session.session_id)
    assert done.state == pb.SUCCEEDED
    assert all(not result.validation_job_id for result in done.results)


async def test_no_model_named_means_the_newest(combiner: Replica) -> None:
    await put_seed(combiner)
    newest = await put_seed(combiner)
    session = await combiner.operator.start_session({"rounds": 1})
    assert (session.seed_model_id, session.model_id) == (newest, newest)


async def test_a_completed_upload_is_a_seed(combiner: Replica) -> None:
    update_id = await combiner.client("c0").upload(one_hot(WIDTH)(0, _NO_TASK))
    session = await combiner.operator.start_session({"rounds": 1}, model_id=update_id)
    assert session.seed_model_id == update_id
    assert (await combiner.operator.describe_model(update_id)).model_id == update_id


_NO_TASK: Task = None  # type: ignore[assignment]  # one_hot does not look at it


async def test_a_failed_round_is_tried_again_on_the_same_model(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    fails = {"1": 1}  # attempts of round 1 that fail

    def failing(index: int, task: Task) -> bool:
        return task.config["round_id"] == "1" and int(task.config["attempt"]) <= fails["1"]

    async with clients(combiner, fails=failing):
        config = {"rounds": 2, "clients_required": N, "max_failed_rounds": 2}
        session = await combiner.operator.start_session(config, model_id=seed)
        done = await combiner.operator.wait_session(session.session_id)
    assert (done.state, done.failed_rounds) == (pb.SUCCEEDED, 1)
    assert [(r.round_id, r.state) for r in done.results] == [
        ("1", pb.FAILED),
        ("1", pb.SUCCEEDED),
        ("2", pb.SUCCEEDED),
    ]
    jobs = [await combiner.operator.get_job(result.job_id) for result in done.results]
    assert [job.parent_model_id for job in jobs] == [seed, seed, jobs[1].model_id]
    assert done.results[0].reason == jobs[0].reason != ""


async def test_too_many_failed_rounds_end_the_session(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with clients(combiner, fails=lambda index, task: True):
        config = {"rounds": 2, "clients_required": N, "max_failed_rounds": 2}
        session = await combiner.operator.start_session(config, model_id=seed)
        done = await combiner.operator.wait_session(session.session_id)
    assert (done.state, done.failed_rounds, done.rounds_done) == (pb.FAILED, 2, 0)
    assert done.reason.startswith("round 1 failed 2 times in a row, at last: ")
    assert done.model_id == seed
    assert not done.current_job_id


async def test_a_session_waits_for_clients_and_then_fails_the_round(stack: Stack) -> None:
    combiner = await stack.combiner(windows=SHORT)
    seed = await put_seed(combiner)
    config = {"rounds": 1, "wait_for_clients": 0.2, "max_failed_rounds": 1}
    session = await combiner.operator.start_session(config, model_id=seed)
    done = await combiner.operator.wait_session(session.session_id)
    assert done.state == pb.FAILED
    assert done.reason == "round 1 failed: 0 of 1 required clients active after 0.2 s"


async def test_a_cancelled_session_ends_with_its_job(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        session = await combiner.operator.start_session({"rounds": 5}, model_id=seed)
        task = await fleet.streams[0].next()
        cancelled = await combiner.operator.cancel_session(session.session_id)
        assert (cancelled.state, cancelled.reason) == (pb.CANCELLED, "cancelled by the operator")
        job = await combiner.operator.wait_job(config_of(task)["_job_id"])
        assert job.state == pb.CANCELLED
        assert await combiner.operator.cancel_session(session.session_id) == cancelled
        other = await combiner.operator.start_session({"rounds": 1}, model_id=seed)
        assert config_of(await fleet.streams[0].next())["session_id"] == other.session_id
    assert len(await combiner.operator.list_jobs(session_id=session.session_id)) == 1


async def test_a_second_session_queues_and_runs_after_the_first(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        config = {"rounds": 1, "validate": False}
        first = await combiner.operator.start_session(config, model_id=seed)
        task = await fleet.streams[0].next()
        second = await combiner.operator.start_session(config, model_id=seed)
        assert second.state == pb.QUEUED
        assert (await combiner.operator.get_session(second.session_id)).state == pb.QUEUED
        await fleet.clients[0].train(task, 0)
        assert (await combiner.operator.wait_session(first.session_id)).state == pb.SUCCEEDED
        await fleet.clients[0].train(await fleet.streams[0].next(), 0)
        assert (await combiner.operator.wait_session(second.session_id)).state == pb.SUCCEEDED
    listed = await combiner.operator.list_sessions()
    assert [session.session_id for session in listed] == [first.session_id, second.session_id]


async def test_a_cancelled_job_is_a_failed_round(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        config = {"rounds": 1, "validate": False}
        session = await combiner.operator.start_session(config, model_id=seed)
        first = config_of(await fleet.streams[0].next())["_job_id"]
        await combiner.operator.cancel_job(first)
        await fleet.clients[0].train(await fleet.streams[0].next(), 0)
        done = await combiner.operator.wait_session(session.session_id)
    assert [result.state for result in done.results] == [pb.CANCELLED, pb.SUCCEEDED]


async def test_starting_again_answers_with_the_session_that_is_there(combiner: Replica) -> None:
    seed, other = await put_seed(combiner), await put_seed(combiner)
    start = combiner.operator.start_session
    first = await start({"rounds": 2}, model_id=seed, session_id="mine")
    again = await start({"rounds": 2}, model_id=seed, session_id="mine")
    assert again.session_id == first.session_id
    assert again.created_at == first.created_at
    assert (await start({}, session_id="mine")).session_id == "mine"
    with pytest.raises(FailedPrecondition, match="another model or config"):
        await start({"rounds": 3}, model_id=seed, session_id="mine")
    with pytest.raises(FailedPrecondition, match="another model or config"):
        await start({"rounds": 2}, model_id=other, session_id="mine")
    assert len(await combiner.operator.list_sessions()) == 1


@pytest.mark.parametrize(
    ("config", "key"),
    [({"rounds": 0}, "rounds"), ({"rounds": "x"}, "rounds"), ({"min_clients": -1}, "clients_required")],
)
async def test_a_session_that_cannot_run_is_refused(
    combiner: Replica, config: dict[str, object], key: str
) -> None:
    seed = await put_seed(combiner)
    with pytest.raises(InvalidArgument, match=f"^{key}: "):
        await combiner.operator.start_session(config, model_id=seed)
    assert await combiner.operator.list_sessions() == []


async def test_a_session_needs_a_model(combiner: Replica) -> None:
    with pytest.raises(NotFound, match="no model yet"):
        await combiner.operator.start_session({"rounds": 1})
    with pytest.raises(NotFound, match="nowhere"):
        await combiner.operator.start_session({"rounds": 1}, model_id="nowhere")
    with pytest.raises(InvalidArgument, match="session_id"):
        await combiner.operator.start_session({"rounds": 1}, session_id="../x")


async def watch(replica: Replica, session_id: str, begun: asyncio.Event) -> list[pb.SessionEvent]:
    events = []
    async for event in replica.operator.watch_session(session_id):
        events.append(event)
        begun.set()
    return events


async def test_watchers_see_every_change_until_the_end(stack: Stack) -> None:
    """At the session's replica, at another one, and one that comes late."""
    one, two = await stack.combiner(), await stack.combiner()
    seed = await put_seed(one)
    async with Connected(one, 1) as fleet:
        client, stream = fleet.clients[0], fleet.streams[0]
        validation = client.open(VALIDATION_STREAM)
        session = await one.operator.start_session({"rounds": 2}, model_id=seed)
        begun = [asyncio.Event(), asyncio.Event()]
        watchers = [
            asyncio.create_task(watch(replica, session.session_id, event))
            for replica, event in zip((one, two), begun, strict=True)
        ]
        for event in begun:
            await asyncio.wait_for(event.wait(), DEADLINE)
        for number in range(2):
            await client.train(await stream.next(), 0)
            await client.validate(await validation.next(), loss=float(number))
            if number == 0:
                late = asyncio.create_task(watch(two, session.session_id, asyncio.Event()))
        events, others = [await asyncio.wait_for(watcher, DEADLINE) for watcher in watchers]
        whole = await asyncio.wait_for(late, DEADLINE)
    assert all((event.what == "job") == event.HasField("job") for event in events)
    assert not any(event.HasField("session") for event in events if event.HasField("job"))
    done = await one.operator.get_session(session.session_id)
    for seen in (events, others, whole):
        assert seen[0].what == seen[-1].what == "snapshot"
        assert seen[-1].session == done
        versions = [event.session.version for event in seen if event.HasField("session")]
        assert versions == sorted(set(versions))
    # training 1, validation 1, training 2, validation 2: each change of the session was told
    told = [event.session.version for event in events if event.HasField("session")]
    assert told == list(range(told[0], done.version + 1))
    jobs = [event.job for event in events if event.HasField("job")]
    assert [job.job_id for job in jobs if job.what == "committed"] == [r.job_id for r in done.results]
    assert [(e.job.job_id, e.job.version) for e in others if e.HasField("job")][-5:] == [
        (job.job_id, job.version) for job in jobs
    ][-5:]


async def test_a_watcher_of_a_job_is_not_misled_by_its_session(combiner: Replica) -> None:
    """Events of the session name its current job, and have versions of their own."""
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        session = await combiner.operator.start_session({"rounds": 3, "validate": False}, model_id=seed)
        for _ in range(2):
            await fleet.clients[0].train(await fleet.streams[0].next(), 0)
        task = await fleet.streams[0].next()
        with combiner.app.feed.subscribe(f"job:{config_of(task)['_job_id']}") as events:
            await combiner.operator.cancel_session(session.session_id)

            async def is_over() -> bool:
                return (await combiner.operator.get_session(session.session_id)).state == pb.CANCELLED

            await eventually(is_over, "the end")
            job = await combiner.operator.wait_job(config_of(task)["_job_id"])
            assert "session" not in [event.what for event in events.drain()]
    assert (job.state, reasons(job.failed)) == (pb.CANCELLED, {})


async def test_a_watcher_of_changes_is_told_each_result_once_it_is_settled(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    request = pb.SessionRequest(session_id="many-rounds", changes_only=True)
    async with clients(combiner), grpc.aio.insecure_channel(combiner.address) as channel:
        config = {"rounds": 6, "clients_required": N, "validate": False}
        await combiner.operator.start_session(config, model_id=seed, session_id="many-rounds")
        stub = combiner_pb2_grpc.SessionsStub(channel)
        told = [event.session async for event in stub.Watch(request) if event.HasField("session")]
    assert told[-1].rounds_done == 6
    assert [result.round_id for result in told[-1].results] == ["5", "6"]
    assert told[-1].first_result == 4
    done = await combiner.operator.get_session("many-rounds")
    assert [result.round_id for result in done.results] == ["1", "2", "3", "4", "5", "6"]
    assert done.first_result == 0
