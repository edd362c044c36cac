"""Several combiners on one Redis and one store: any serves any client, and goes on with any job."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from combiner.domain.leases import Windows
from numpy.typing import NDArray

from fedcombiner.client.made_up import MadeUp, one_hot, random_like, to_npz
from fedcombiner.client.messages import Task
from fedcombiner.client.simulate import SimulatedFleet
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.rpc.combiner_kit import (
    SHORT,
    VALIDATION_STREAM,
    WIDTH,
    Connected,
    Gate,
    Replica,
    Stack,
    bytes_of,
    eventually,
    put_seed,
    reasons,
    shares,
    training,
    until_job,
    weights_of,
)

N = 4


async def test_streams_jobs_and_answers_may_be_on_any_replica(stack: Stack) -> None:
    one, two = await stack.combiner(), await stack.combiner()
    seed = await put_seed(one)
    async with Connected(one, 2) as fleet:
        job_id = await two.operator.start_job(training(seed, clients_required=2))
        for index, task in enumerate(await fleet.tasks()):
            await two.client(f"c{index}").train(task, index, index + 1)
        job = await one.operator.wait_job(job_id)
    assert await weights_of(two, job) == shares(1, 2)


async def test_a_client_of_either_replica_is_one_of_the_required(stack: Stack) -> None:
    one, two = await stack.combiner(), await stack.combiner()
    seed = await put_seed(one)
    job_id = await one.operator.start_job(training(seed, clients_required=2))
    a, b = one.client("a"), two.client("b")
    streams = [a.open(), b.open()]
    for client, stream in zip((a, b), streams, strict=True):
        await client.train(await stream.next(), 0)
    job = await two.operator.wait_job(job_id)
    assert list(job.accepted) == ["a", "b"]


async def owner_of(*replicas: Replica) -> Replica:
    """The replica that works."""

    async def works() -> bool:
        return sum(int(str(replica.app.status()["works"])) for replica in replicas) == 1

    await eventually(works, "one owner")
    return next(replica for replica in replicas if replica.app.status()["works"])


async def test_a_killed_owner_changes_no_byte(stack: Stack) -> None:
    """Half of the updates are in, two accepted by the dead owner; the others come through the survivor."""
    one, two = await stack.combiner(windows=SHORT), await stack.combiner(windows=SHORT)
    parent: dict[str, NDArray[Any]] = {"w": np.zeros(1000, np.float32), "b": np.zeros(7, np.float64)}
    seed = await put_seed(one, to_npz(parent))
    content = random_like(parent, seed=3)

    async def send(replica: Replica, index: int, task: Task) -> None:
        client = replica.client(f"c{index}")
        update_id = await client.upload(content(index, task))
        await client.send(client.update(task, update_id, 10**index))

    config = training(seed, clients_required=N, client_grace=60)
    clients = [(one, two)[index % 2].client(f"c{index}") for index in range(N)]
    streams = [client.open() for client in clients]
    for client in clients:
        client.keep_beating()
    undisturbed = await one.operator.start_job(config)
    for index, stream in enumerate(streams):
        await send(two, index, await stream.next())
    expected = await bytes_of(one, (await one.operator.wait_job(undisturbed)).model_id)

    job_id = await one.operator.start_job(config)
    tasks = [await stream.next() for stream in streams]
    owner = await owner_of(one, two)
    survivor = two if owner is one else one
    for index in (3, 1):
        await send(owner, index, tasks[index])
    await until_job(survivor.operator, job_id, lambda job: len(job.accepted) == 2, "two are accepted")
    await owner.kill()
    for index in (0, 2):
        await send(survivor, index, tasks[index])
    job = await survivor.operator.wait_job(job_id)
    assert (job.state, len(job.accepted), len(job.rejected)) == (pb.SUCCEEDED, N, 0)
    assert await bytes_of(survivor, job.model_id) == expected


STEPS = [
    ("jobs.claim", True),
    ("jobs.open", False),
    ("jobs.open", True),
    ("jobs.accept", False),
    ("jobs.accept", True),
    ("jobs.reject", False),
    ("jobs.reject", True),
    ("jobs.close", False),
    ("jobs.close", True),
    ("jobs.commit", False),
    ("jobs.commit", True),
]


@pytest.mark.parametrize(("step", "after"), STEPS)
async def test_an_owner_killed_at_any_step_is_replaced(stack: Stack, step: str, after: bool) -> None:
    """c0 to c2 are good and c3 is not; each good one is in the aggregate once."""
    gate, others = Gate(step, after=after), Gate()
    owner = await stack.combiner(windows=SHORT, gate=gate)
    survivor = await stack.combiner(windows=SHORT, gate=others)
    seed = await put_seed(owner)
    async with Connected(survivor, N, beat=True) as fleet:
        others.shut()  # so that it does not take the job
        job_id = await owner.operator.start_job(training(seed, clients_required=N - 1, client_grace=60))
        await (gate.until_reached() if step == "jobs.claim" else owner_of(owner))
        others.open()
        answering = asyncio.create_task(_answer(fleet))
        await gate.until_reached()
        await owner.kill()
        await answering
        job = await survivor.operator.wait_job(job_id)
    assert job.state == pb.SUCCEEDED, job
    assert list(job.accepted) == ["c0", "c1", "c2"]
    assert reasons(job.rejected) == {"c3": "not_a_model"}
    assert await weights_of(survivor, job) == shares(1, 2, 3)
    objects = [info.key.id async for info in survivor.store.list("models")]
    assert {seed, job.model_id} <= set(objects)


async def _answer(fleet: Connected) -> None:
    """The last one's update is no good."""
    for index, task in enumerate(await fleet.tasks()):
        client = fleet.clients[index]
        if index == len(fleet.clients) - 1:
            await client.send(client.update(task, await client.upload(b"no model")))
        else:
            await client.train(task, index, index + 1)


@pytest.mark.parametrize("after", [False, True])
async def test_an_update_whose_replica_dies_is_sent_again_and_counts_once(stack: Stack, after: bool) -> None:
    """Whether or not the journal had it when the replica died before it could answer."""
    survivor = await stack.combiner(windows=SHORT)
    gate = Gate("jobs.receive", after=after)
    doomed = await stack.combiner(windows=SHORT, gate=gate)
    seed = await put_seed(survivor)
    async with Connected(survivor, 1, beat=True) as fleet:
        job_id = await survivor.operator.start_job(training(seed, clients_required=1, client_grace=60))
        task = await fleet.streams[0].next()
        client = doomed.client("c0")
        message = client.update(task, await client.upload(one_hot(WIDTH)(0, task)))
        sending = asyncio.create_task(client.send(message))
        await gate.until_reached()
        assert not sending.done()
        sending.cancel()
        await asyncio.wait([sending])
        await doomed.kill()
        await fleet.clients[0].send(message)
        job = await survivor.operator.wait_job(job_id)
    assert (list(job.accepted), len(job.rejected)) == (["c0"], 0)
    assert await weights_of(survivor, job) == shares(1)


async def test_a_paused_owner_that_wakes_up_cannot_commit(stack: Stack) -> None:
    """It was stopped when its aggregate was written; meanwhile another one committed its own."""
    gate = Gate("jobs.commit")
    paused = await stack.combiner(windows=SHORT, gate=gate)
    seed = await put_seed(paused)
    job_id = await paused.operator.start_job(training(seed, clients_required=2))
    await until_job(paused.operator, job_id, lambda job: job.phase == "waiting", "is the first one's")
    other = await stack.combiner(windows=SHORT)
    async with Connected(other, 2, beat=True) as fleet:
        for index, task in enumerate(await fleet.tasks()):
            await fleet.clients[index].train(task, index)
        await gate.until_reached()
        assert len([info async for info in other.store.list("models")]) == 2
        job = await other.operator.wait_job(job_id)
        assert job.state == pb.SUCCEEDED
        gate.open()

        async def only_one() -> bool:
            models = {info.key.id async for info in other.store.list("models")}
            return models == {seed, job.model_id}

        await eventually(only_one, "the late aggregate to be removed")
        assert await other.operator.get_job(job_id) == job
        assert (await paused.operator.describe_model("")).model_id == job.model_id
        assert await weights_of(other, job) == shares(1, 1)
        again = await paused.operator.start_job(training(seed))
        for stream in fleet.streams:
            assert (await stream.next()).request.data.count(again) == 1


async def test_an_update_recorded_just_before_the_close_is_in_the_aggregate(stack: Stack) -> None:
    """The owner has decided to close and not done so yet; it has not heard of the update."""
    gate = Gate("jobs.close")
    owner = await stack.combiner(gate=gate)
    seed = await put_seed(owner)
    async with Connected(owner, 2) as fleet:
        job_id = await owner.operator.start_job(training(seed, buffer_size=1))
        await owner_of(owner)
        other = await stack.combiner()
        tasks = await fleet.tasks()
        await fleet.clients[0].train(tasks[0], 0)
        await gate.until_reached()
        await other.client("c1").train(tasks[1], 1)
        gate.open()
        job = await other.operator.wait_job(job_id)
    assert (job.state, list(job.rejected)) == (pb.SUCCEEDED, [])
    assert await weights_of(other, job) == shares(1, 1)


async def test_an_answer_recorded_just_before_the_close_counts(stack: Stack) -> None:
    """Of a validation, whose answers are not judged: the journal alone knows of it."""
    gate = Gate("jobs.close")
    owner = await stack.combiner(gate=gate)
    seed = await put_seed(owner)
    async with Connected(owner, 1, VALIDATION_STREAM) as fleet:
        config = training(seed, task="validation", round_timeout=0.5)
        job_id = await owner.operator.start_job(config)
        await owner_of(owner)
        other = await stack.combiner()
        task = await fleet.streams[0].next()
        await gate.until_reached()
        await other.client("c0").validate(task, loss=1.0)
        gate.open()
        job = await other.operator.wait_job(job_id)
    assert (job.state, list(job.accepted)) == (pb.SUCCEEDED, ["c0"])


async def test_a_drained_replica_hands_its_work_over_at_once(stack: Stack) -> None:
    """With leases of a minute: nobody waits for them to lapse. Its client's task moves with the client."""
    hour = Windows(lease=3600.0)
    one = await stack.combiner(windows=hour)
    seed = await put_seed(one)
    session = await one.operator.start_session(
        {"rounds": 1, "validate": False, "clients_required": 2}, model_id=seed
    )
    two = await stack.combiner(windows=hour)
    moving, staying = one.client("c0"), two.client("c1")
    streams = [moving.open(), staying.open()]
    first, task = [await stream.next() for stream in streams]
    await one.stop()
    moved = two.client("c0")
    again = await moved.open().next()
    assert again.id == first.id
    await moved.train(again, 0)
    await staying.train(task, 1)
    done = await two.operator.wait_session(session.session_id)
    assert done.state == pb.SUCCEEDED
    job = await two.operator.get_job(done.results[0].job_id)
    assert await weights_of(two, job) == shares(1, 1)


async def test_deliveries_that_our_side_cut_are_not_counted(stack: Stack) -> None:
    """Four replicas go, one after another, and the task is delivered each time."""
    hour = Windows(lease=3600.0)
    replica = await stack.combiner(windows=hour)
    seed = await put_seed(replica)
    job_id = await replica.operator.start_job(training(seed, client_grace=60))
    for _ in range(4):
        stream = replica.client("c0").open()
        await stream.next()
        following = await stack.combiner(windows=hour)
        await replica.app.drain()  # before its client leaves
        await replica.stop()
        replica = following
    client = replica.client("c0")
    await client.train(await client.open().next(), 0)
    assert (await replica.operator.wait_job(job_id)).state == pb.SUCCEEDED


async def test_a_task_on_a_dead_replicas_stream_comes_again_elsewhere(stack: Stack) -> None:
    one, two = await stack.combiner(windows=SHORT), await stack.combiner(windows=SHORT)
    seed = await put_seed(one)
    job_id = await two.operator.start_job(training(seed, client_grace=60))
    task = await one.client("c0").open().next()
    await one.kill()
    client = two.client("c0")
    again = await client.open().next()
    assert again.id == task.id
    await client.train(again, 0)
    assert (await two.operator.wait_job(job_id)).state == pb.SUCCEEDED


async def test_a_client_that_trains_on_a_dead_replicas_stream_is_lost_only_when_silent(stack: Stack) -> None:
    """As FEDn's second generation does: it opens its next stream when it has answered."""
    one, two = await stack.combiner(windows=SHORT), await stack.combiner(windows=SHORT)
    seed = await put_seed(one)
    async with Connected(one, 2) as fleet:
        busy = two.client("c0")
        busy.keep_beating()
        job_id = await two.operator.start_job(training(seed, clients_requested=2, client_grace=0.2))
        task, _ = await fleet.tasks()
        await one.kill()
        await until_job(
            two.operator, job_id, lambda job: len(job.failed) == 1, "the silent client to be lost"
        )
        await busy.train(task, 0)
        job = await two.operator.wait_job(job_id)
    assert (job.state, list(job.accepted), reasons(job.failed)) == (
        pb.SUCCEEDED,
        ["c0"],
        {"c1": "client_lost"},
    )


@pytest.mark.parametrize(
    ("step", "after"), [("sessions.claim", True), ("sessions.advance", False), ("sessions.advance", True)]
)
async def test_a_session_outlives_its_owner(stack: Stack, step: str, after: bool) -> None:
    gate = Gate(step, after=after)
    owner = await stack.combiner(windows=SHORT, gate=gate)
    seed = await put_seed(owner)
    session = await owner.operator.start_session({"rounds": 2, "clients_required": 2}, model_id=seed)
    await gate.until_reached()
    await owner.kill()
    survivor = await stack.combiner(windows=SHORT)
    async with SimulatedFleet(
        2, survivor.address, workload=lambda i: MadeUp(i, one_hot(WIDTH)), heartbeat_interval=0.3
    ):
        done = await survivor.operator.wait_session(session.session_id)
    assert (done.state, done.rounds_done, done.failed_rounds) == (pb.SUCCEEDED, 2, 0)
    assert len(await survivor.operator.list_jobs(session_id=session.session_id)) == 4


async def test_a_stack_that_was_killed_whole_goes_on(stack: Stack) -> None:
    """Session, job, received and accepted updates are all there when a combiner comes back."""
    before = await stack.combiner(windows=SHORT)
    seed = await put_seed(before)
    session = await before.operator.start_session(
        {"rounds": 2, "validate": False, "clients_required": 2, "client_grace": 60}, model_id=seed
    )
    async with Connected(before, 2) as fleet:
        tasks = await fleet.tasks()
        job_id = (await before.operator.get_session(session.session_id)).current_job_id
        await fleet.clients[0].train(tasks[0], 0)
        await until_job(before.operator, job_id, lambda job: len(job.accepted) == 1, "one is accepted")
        await before.kill()
    after = await stack.combiner(windows=SHORT)
    clients = [after.client("c0"), after.client("c1")]
    streams = [client.open() for client in clients]
    for client in clients:
        client.keep_beating()
    await clients[1].train(tasks[1], 1)
    assert await weights_of(after, await after.operator.wait_job(job_id)) == shares(1, 1)
    second = {}
    for index, stream in enumerate(streams):
        task = await stream.next()
        if task.id == tasks[index].id:
            task = await stream.next()
        second[index] = task.id
        await clients[index].train(task, index)
    done = await after.operator.wait_session(session.session_id)
    assert (done.state, done.rounds_done) == (pb.SUCCEEDED, 2)
