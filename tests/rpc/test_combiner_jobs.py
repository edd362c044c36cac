"""The queue of jobs, cancelling, and watching."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from fedcombiner.modelstorage.store import ObjectKey
from fedcombiner.servicekit.errors import NotFound
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.rpc.combiner_kit import (
    DEADLINE,
    VALIDATION_STREAM,
    Connected,
    Replica,
    Stack,
    put_seed,
    training,
    until_job,
)


class Watcher:
    """Watches a job to its end."""

    def __init__(self, replica: Replica, job_id: str) -> None:
        self._events: list[pb.JobEvent] = []
        self._begun = asyncio.Event()
        self._task = asyncio.create_task(self._watch(replica, job_id), name="watcher")

    async def _watch(self, replica: Replica, job_id: str) -> None:
        async for event in replica.operator.watch_job(job_id):
            self._events.append(event)
            self._begun.set()

    async def until_begun(self) -> None:
        await asyncio.wait_for(self._begun.wait(), DEADLINE)

    async def until_over(self) -> list[pb.JobEvent]:
        await asyncio.wait_for(self._task, DEADLINE)
        return self._events


async def test_jobs_run_first_in_first_out_one_at_a_time(stack: Stack) -> None:
    """Whichever replica takes them."""
    replicas = [await stack.combiner(), await stack.combiner()]
    combiner = replicas[0]
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        jobs = [
            await replicas[n % 2].operator.start_job(training(seed, round_id=str(n), buffer_size=1))
            for n in range(4)
        ]
        for number, job_id in enumerate(jobs):
            task = await fleet.streams[0].next()
            states = [(await combiner.operator.get_job(job)).state for job in jobs]
            ahead = [pb.SUCCEEDED] * number
            assert states == [*ahead, pb.RUNNING, *[pb.QUEUED] * (len(jobs) - number - 1)]
            await fleet.clients[0].train(task, 0)
            assert (await combiner.operator.wait_job(job_id)).state == pb.SUCCEEDED


async def test_more_jobs_run_at_once_if_that_is_set(stack: Stack) -> None:
    combiner = await stack.combiner(limits={"max_running_jobs": 2})
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        jobs = [await combiner.operator.start_job(training(seed, round_id=str(n))) for n in range(3)]
        tasks = [await fleet.streams[0].next() for _ in range(2)]
        assert (await combiner.operator.get_job(jobs[2])).state == pb.QUEUED
        for task in tasks:
            await fleet.clients[0].train(task, 0)
        await fleet.clients[0].train(await fleet.streams[0].next(), 0)
        for job_id in jobs:
            assert (await combiner.operator.wait_job(job_id)).state == pb.SUCCEEDED


async def test_a_queued_job_that_is_cancelled_never_runs(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        first = await combiner.operator.start_job(training(seed))
        queued = await combiner.operator.start_job(training(seed))
        third = await combiner.operator.start_job(training(seed))
        cancelled = await combiner.operator.cancel_job(queued)
        assert (cancelled.state, cancelled.reason) == (pb.CANCELLED, "cancelled by the operator")
        for job_id in (first, third):
            await fleet.clients[0].train(await fleet.streams[0].next(), 0)
            assert (await combiner.operator.wait_job(job_id)).state == pb.SUCCEEDED
    assert not (await combiner.operator.get_job(queued)).asked


async def test_a_running_job_that_is_cancelled_leaves_streams_open_and_queues_empty(
    combiner: Replica,
) -> None:
    seed = await put_seed(combiner)
    absent = combiner.client("absent")
    stream = absent.open()
    async with Connected(combiner, 1, others=1) as fleet:
        job_id = await combiner.operator.start_job(training(seed, clients_required=2))
        task = await fleet.streams[0].next()
        await stream.next()
        await stream.cancel()
        ended = await combiner.operator.cancel_job(job_id)
        assert ended.state == pb.CANCELLED
        await fleet.clients[0].train(task, 0)
        # A client that comes back is not given the dead task, and the open stream still works.
        again = absent.open()
        next_id = await combiner.operator.start_job(training(seed, clients_required=2, round_id="2"))
        for reader in (fleet.streams[0], again):
            assert f'"{next_id}"' in (await reader.next()).request.data
    job = await combiner.operator.get_job(job_id)
    assert [(o.client, o.reason) for o in job.rejected] == [("c0", "late")]
    assert not job.model_id


async def test_cancelling_an_ended_job_changes_nothing(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        job_id = await combiner.operator.start_job(training(seed))
        await fleet.clients[0].train(await fleet.streams[0].next(), 0)
        job = await combiner.operator.wait_job(job_id)
        assert await combiner.operator.cancel_job(job_id) == job


@pytest.mark.parametrize("job_id", ["", "nowhere"])
async def test_unknown_jobs_are_not_found(combiner: Replica, job_id: str) -> None:
    with pytest.raises(NotFound):
        await combiner.operator.get_job(job_id)
    with pytest.raises(NotFound):
        await combiner.operator.cancel_job(job_id)
    with pytest.raises(NotFound):
        await combiner.operator.wait_job(job_id)


async def test_a_watcher_sees_every_event_with_the_counts(stack: Stack) -> None:
    """At the replica that runs the job, at another one, and one that comes late."""
    one, two = await stack.combiner(), await stack.combiner()
    seed = await put_seed(one)
    async with Connected(one, 3) as fleet:
        running = await one.operator.start_job(training(seed))
        blocker = await fleet.tasks()
        job_id = await one.operator.start_job(training(seed, clients_required=1, round_id="2"))
        watchers = [Watcher(one, job_id), Watcher(two, job_id)]
        for watcher in watchers:
            await watcher.until_begun()
        for index, task in enumerate(blocker):
            await fleet.clients[index].train(task, index)
        await one.operator.wait_job(running)
        tasks = await fleet.tasks()
        await fleet.clients[0].train(tasks[0], 0)
        await until_job(one.operator, job_id, lambda job: len(job.accepted) == 1, "accepted")
        await fleet.clients[1].fail(tasks[1])
        await fleet.clients[2].send(fleet.clients[2].update(tasks[2], "nowhere"))
        late = Watcher(two, job_id)
        events, others, whole = [await watcher.until_over() for watcher in (*watchers, late)]
    told = [(e.what, e.client, e.reason, e.asked, e.accepted, e.rejected, e.failed) for e in events]
    assert told == [
        ("snapshot", "", "", 0, 0, 0, 0),
        ("running", "", "", 0, 0, 0, 0),
        ("asked", "", "", 3, 0, 0, 0),
        ("received", "c0", "", 3, 0, 0, 0),
        ("accepted", "c0", "", 3, 1, 0, 0),
        ("failed", "c1", "client_failed", 3, 1, 0, 1),
        ("rejected", "c2", "not_uploaded", 3, 1, 1, 1),
        ("closed", "", "answered", 3, 1, 1, 1),
        ("snapshot", "", "", 3, 1, 1, 1),
    ]
    assert [e.what for e in others] == [e.what for e in events]
    assert (whole[0].what, whole[-1].what) == ("snapshot", "snapshot")
    versions = [event.version for event in events]
    assert versions == sorted(set(versions))
    assert events[-1].job == whole[-1].job == await one.operator.get_job(job_id)
    assert (events[0].job.state, events[-1].job.state) == (pb.QUEUED, pb.SUCCEEDED)


async def test_jobs_are_listed_oldest_first_and_by_session(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    jobs = [await combiner.operator.start_job(training(seed, session_id=f"s{n % 2}")) for n in range(4)]
    assert [job.job_id for job in await combiner.operator.list_jobs()] == jobs
    assert [job.job_id for job in await combiner.operator.list_jobs(limit=2)] == jobs[2:]
    assert [job.job_id for job in await combiner.operator.list_jobs(session_id="s1")] == jobs[1::2]


async def test_a_job_whose_model_is_gone_fails_and_says_so(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    await combiner.store.delete(ObjectKey("models", seed))
    async with Connected(combiner, 1):
        job = await combiner.operator.wait_job(await combiner.operator.start_job(training(seed)))
    assert (job.state, job.reason) == (pb.FAILED, f"model_id: {seed} is not in the store")


async def test_a_full_queue_refuses_more(stack: Stack) -> None:
    combiner = await stack.combiner(limits={"max_queued": 2})
    seed = await put_seed(combiner)
    first = await combiner.operator.start_job(training(seed))
    await until_job(combiner.operator, first, lambda job: job.state == pb.RUNNING, "runs")
    for _ in range(2):
        await combiner.operator.start_job(training(seed))
    request = fedn_pb2.ControlRequest(
        parameter=[fedn_pb2.Parameter(key=k, value=str(v)) for k, v in training(seed).items()]
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await combiner.operator.link.unary_unary("/grpc.Control/Start")(request.SerializeToString())
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_unread_watcher_finds_a_snapshot_in_place_of_what_it_missed(combiner: Replica) -> None:
    """The subscription is bounded; here it is shortened to a few events."""
    seed = await put_seed(combiner)
    combiner.client("v").open(VALIDATION_STREAM)
    async with Connected(combiner, 3, others=1) as fleet:
        with combiner.app.feed.subscribe("session:s1", limit=2) as events:
            job_id = await combiner.operator.start_job(training(seed, session_id="s1"))
            for index, task in enumerate(await fleet.tasks()):
                await fleet.clients[index].train(task, index)
            await combiner.operator.wait_job(job_id)
            assert "resync" in [event.what for event in events.drain()]
