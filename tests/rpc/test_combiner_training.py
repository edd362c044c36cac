"""Training rounds through a real combiner: who is asked, when a round ends, and who is in the aggregate."""

from __future__ import annotations

import numpy as np
import pytest

from fedcombiner.client.made_up import to_npz
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.rpc.combiner_kit import (
    SHORT,
    VALIDATION_STREAM,
    Connected,
    Replica,
    Stack,
    arrays_of,
    eventually,
    put_seed,
    reasons,
    shares,
    training,
    until_job,
    until_silent,
    weights_of,
)


async def test_all_asked_clients_are_folded_once_by_their_examples(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 3) as fleet:
        job_id = await combiner.operator.start_job(training(seed, clients_required=3))
        for index, task in enumerate(await fleet.tasks()):
            assert task.model_id == seed
            await fleet.clients[index].train(task, index, index + 1)
        job = await combiner.operator.wait_job(job_id)
    assert job.state == pb.SUCCEEDED, job
    assert (list(job.asked), list(job.accepted)) == (["c0", "c1", "c2"], ["c0", "c1", "c2"])
    assert job.parent_model_id == seed
    assert await weights_of(combiner, job) == shares(1, 2, 3)
    model = await combiner.operator.describe_model(job.model_id)
    assert (model.updates, model.num_examples, model.parent_model_id) == (3, 6, seed)
    assert (model.round_id, model.job_id) == ("1", job_id)


async def test_a_round_starts_as_soon_as_the_required_clients_are_there(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    job_id = await combiner.operator.start_job(training(seed, clients_required=2))
    async with Connected(combiner, 1) as first:
        await until_job(combiner.operator, job_id, lambda job: job.phase == "waiting", "waits for the other")
        late = combiner.client("c1")
        stream = late.open()
        await late.train(await stream.next(), 1)
        await first.clients[0].train(await first.streams[0].next(), 0)
        job = await combiner.operator.wait_job(job_id)
    assert list(job.accepted) == ["c0", "c1"]


async def test_a_client_that_beats_again_is_one_of_the_required(stack: Stack) -> None:
    """Its stream was there all along, but it was not heard of for a while."""
    combiner = await stack.combiner(windows=SHORT)
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        client = fleet.clients[0]
        await until_silent(combiner)
        job_id = await combiner.operator.start_job(training(seed))
        await until_job(combiner.operator, job_id, lambda job: job.phase == "waiting", "waits")
        await client.beat()
        await client.train(await fleet.streams[0].next(), 0)
        job = await combiner.operator.wait_job(job_id)
    assert job.state == pb.SUCCEEDED


async def test_over_selection_asks_more_and_ends_with_the_wanted(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 6) as fleet:
        config = training(seed, clients_required=2, clients_requested=2, over_selection=2, seed=7)
        job_id = await combiner.operator.start_job(config)
        job = await until_job(combiner.operator, job_id, lambda job: job.phase == "collecting", "asks")
        asked = [int(name[1:]) for name in job.asked]
        assert len(asked) == 4
        tasks = {index: await fleet.streams[index].next() for index in asked}
        for index in asked[:2]:
            await fleet.clients[index].train(tasks[index], index)
        job = await combiner.operator.wait_job(job_id)
        assert await weights_of(combiner, job) == dict.fromkeys(asked[:2], 0.5)
        await fleet.clients[asked[2]].train(tasks[asked[2]], asked[2])
        job = await combiner.operator.get_job(job_id)
        assert reasons(job.rejected) == {f"c{asked[2]}": "late"}
        again = await combiner.operator.start_job(config)
        job = await until_job(combiner.operator, again, lambda job: job.phase == "collecting", "asks")
        assert [int(name[1:]) for name in job.asked] == asked


async def test_fewer_active_than_requested_are_all_asked(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 2):
        job_id = await combiner.operator.start_job(training(seed, clients_requested=10))
        job = await until_job(combiner.operator, job_id, lambda job: job.phase == "collecting", "asks")
        assert list(job.asked) == ["c0", "c1"]


async def test_buffer_size_ends_the_round(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 3) as fleet:
        job_id = await combiner.operator.start_job(training(seed, clients_required=2, buffer_size=2))
        tasks = await fleet.tasks()
        for index in (0, 2):
            await fleet.clients[index].train(tasks[index], index)
        job = await combiner.operator.wait_job(job_id)
    assert await weights_of(combiner, job) == shares(1, 0, 1)


async def test_grace_ends_the_round_when_enough_are_in(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 2) as fleet:
        job_id = await combiner.operator.start_job(training(seed, grace=0.2))
        task, _ = await fleet.tasks()
        await fleet.clients[0].train(task, 0)
        job = await combiner.operator.wait_job(job_id)
    assert job.state == pb.SUCCEEDED
    assert await weights_of(combiner, job) == shares(1)


async def test_the_deadline_ends_a_round_of_stragglers(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 2) as fleet:
        job_id = await combiner.operator.start_job(training(seed, round_timeout=0.7))
        task, straggling = await fleet.tasks()
        await fleet.clients[0].train(task, 0)
        job = await combiner.operator.wait_job(job_id)
        assert job.state == pb.SUCCEEDED
        assert await weights_of(combiner, job) == shares(1)
        assert job.ended_at >= job.deadline_at
        await fleet.clients[1].train(straggling, 1)
        assert reasons((await combiner.operator.get_job(job_id)).rejected) == {"c1": "late"}


async def test_too_few_updates_at_the_deadline_fail_the_round(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 2) as fleet:
        job_id = await combiner.operator.start_job(training(seed, clients_required=2, round_timeout=0.7))
        task, _ = await fleet.tasks()
        await fleet.clients[0].train(task, 0)
        job = await combiner.operator.wait_job(job_id)
    assert (job.state, job.model_id) == (pb.FAILED, "")
    assert job.reason == "1 of 2 required updates at the deadline (asked 2: 1 accepted, 1 did not answer)"


async def test_a_hopeless_round_ends_at_once(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 2) as fleet:
        job_id = await combiner.operator.start_job(training(seed, clients_required=2))
        await fleet.clients[1].fail((await fleet.tasks())[1])
        job = await combiner.operator.wait_job(job_id)
    assert job.state == pb.FAILED
    assert "2 can no longer be reached" in job.reason
    assert reasons(job.failed) == {"c1": "client_failed"}
    assert job.ended_at < job.deadline_at


async def test_known_failures_end_the_round_early(combiner: Replica) -> None:
    """A WARNING status with the request in it, and an upload of no bytes."""
    seed = await put_seed(combiner)
    async with Connected(combiner, 3) as fleet:
        job_id = await combiner.operator.start_job(training(seed))
        tasks = await fleet.tasks()
        await fleet.clients[0].fail(tasks[0])
        empty = await fleet.clients[1].upload(b"")
        await fleet.clients[1].send(fleet.clients[1].update(tasks[1], empty))
        await fleet.clients[2].train(tasks[2], 2)
        job = await combiner.operator.wait_job(job_id)
    assert job.state == pb.SUCCEEDED
    assert reasons(job.failed) == {"c0": "client_failed", "c1": "empty_upload"}
    assert job.failed[0].detail == "Client c0 failed to complete model update."
    assert await weights_of(combiner, job) == shares(0, 0, 1)
    assert job.ended_at < job.deadline_at


async def test_a_client_that_goes_away_is_not_waited_for(stack: Stack) -> None:
    combiner = await stack.combiner(windows=SHORT)
    seed = await put_seed(combiner)
    async with Connected(combiner, 2, beat=True) as fleet:
        job_id = await combiner.operator.start_job(training(seed, client_grace=0.2))
        tasks = await fleet.tasks()
        await fleet.streams[0].cancel()
        await fleet.clients[1].train(tasks[1], 1)
        job = await combiner.operator.wait_job(job_id)
    assert job.state == pb.SUCCEEDED
    assert reasons(job.failed) == {"c0": "client_lost"}
    assert await weights_of(combiner, job) == shares(0, 1)


async def test_too_few_clients_fail_the_job_with_the_numbers(stack: Stack) -> None:
    combiner = await stack.combiner(windows=SHORT)
    seed = await put_seed(combiner)
    async with Connected(combiner, 1, beat=True):
        job_id = await combiner.operator.start_job(training(seed, clients_required=2, wait_for_clients=0))
        job = await combiner.operator.wait_job(job_id)
    assert (job.state, job.reason) == (pb.FAILED, "1 of 2 required clients active")
    assert not job.asked


async def test_a_combiner_that_just_came_gives_clients_a_window_to_come_too(stack: Stack) -> None:
    """Nothing is known of clients yet; a job that was queued before a restart must not fail for that."""
    combiner = await stack.combiner()
    seed = await put_seed(combiner)
    job_id = await combiner.operator.start_job(training(seed, wait_for_clients=0))
    await until_job(combiner.operator, job_id, lambda job: job.phase == "waiting", "waits all the same")
    async with Connected(combiner, 1) as fleet:
        await fleet.clients[0].train(await fleet.streams[0].next(), 0)
        assert (await combiner.operator.wait_job(job_id)).state == pb.SUCCEEDED


async def test_validators_are_not_asked_to_train(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    combiner.client("validator").open(VALIDATION_STREAM)
    async with Connected(combiner, 1, others=1) as fleet:
        job_id = await combiner.operator.start_job(training(seed))
        await fleet.clients[0].train(await fleet.streams[0].next(), 0)
        job = await combiner.operator.wait_job(job_id)
    assert list(job.asked) == ["c0"]


@pytest.mark.parametrize("dtype", ["float16", "float64", "int64", "uint8"])
async def test_updates_of_other_dtypes_average_to_the_parents(combiner: Replica, dtype: str) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 2) as fleet:
        job_id = await combiner.operator.start_job(training(seed, clients_required=2))
        for index, (client, task) in enumerate(zip(fleet.clients, await fleet.tasks(), strict=True)):
            values = np.full(8, 3 * index + 1, dtype)
            await client.send(client.update(task, await client.upload(to_npz({"w": values})), 1 + index))
        job = await combiner.operator.wait_job(job_id)
    result = (await arrays_of(combiner, job.model_id))["w"]
    assert result.dtype == np.float32
    assert (result == np.float32((1 * 1 + 2 * 4) / 3)).all()


async def test_a_parent_of_integers_stays_one(combiner: Replica) -> None:
    seed = await put_seed(combiner, to_npz({"w": np.zeros(2, np.int32)}))
    async with Connected(combiner, 2) as fleet:
        job_id = await combiner.operator.start_job(training(seed, clients_required=2))
        for index, (client, task) in enumerate(zip(fleet.clients, await fleet.tasks(), strict=True)):
            values = to_npz({"w": np.array([index, 3 * index], np.float32)})
            await client.send(client.update(task, await client.upload(values)))
        job = await combiner.operator.wait_job(job_id)
    result = (await arrays_of(combiner, job.model_id))["w"]
    assert result.dtype == np.int32
    assert list(result) == [0, 2]  # half to even


async def test_uploads_are_deleted_with_the_round_unless_they_are_to_stay(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        for delete, left in (("True", 1), ("False", 2)):
            job_id = await combiner.operator.start_job(training(seed, delete_models_storage=delete))
            await fleet.clients[0].train(await fleet.streams[0].next(), 0)
            await combiner.operator.wait_job(job_id)

            async def is_left(number: int = left) -> bool:
                return len([info async for info in combiner.store.list("uploads")]) == number

            await eventually(is_left, f"{left} uploads with the seed's")
