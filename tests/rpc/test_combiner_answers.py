"""What becomes of answers: each rejection has its reason, and nothing counts twice or in the wrong round."""

from __future__ import annotations

import json

import grpc.aio
import pytest
from combiner.servicers import operator

from fedcombiner.client.messages import Task
from fedcombiner.modelstorage.store import ObjectKey
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2_grpc
from tests.rpc.combiner_kit import (
    VALIDATION_STREAM,
    Client,
    Connected,
    Replica,
    config_of,
    eventually,
    one_hot,
    put_seed,
    reasons,
    shares,
    training,
    until_job,
    weights_of,
)


async def test_a_bad_update_is_rejected_and_the_rest_goes_on(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 2) as fleet:
        job_id = await combiner.operator.start_job(training(seed))
        good, bad = await fleet.tasks()
        client = fleet.clients[1]
        await client.send(client.update(bad, await client.upload(one_hot(1, width=9))))
        await until_job(combiner.operator, job_id, lambda job: len(job.rejected) == 1, "rejected")
        await fleet.clients[0].train(good, 0)
        job = await combiner.operator.wait_job(job_id)
    assert job.state == pb.SUCCEEDED
    assert reasons(job.rejected) == {"c1": "shape"}
    assert "(8,)" in job.rejected[0].detail
    assert await weights_of(combiner, job) == shares(1)


async def test_a_client_that_was_not_asked_is_listed(combiner: Replica) -> None:
    """Also one that answers with a task of another."""
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        job_id = await combiner.operator.start_job(training(seed))
        task = await fleet.streams[0].next()
        stranger = combiner.client("stranger")
        await stranger.train(task, 5)
        job = await combiner.operator.get_job(job_id)
        assert reasons(job.rejected) == {"stranger": "not_asked"}
        await fleet.clients[0].train(task, 0)
        job = await combiner.operator.wait_job(job_id)
    assert await weights_of(combiner, job) == shares(1)


async def test_a_second_update_is_a_duplicate(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 2) as fleet:
        job_id = await combiner.operator.start_job(training(seed))
        first, second = await fleet.tasks()
        await fleet.clients[0].train(first, 0)
        await fleet.clients[0].train(first, 7)
        await fleet.clients[1].train(second, 1)
        job = await combiner.operator.wait_job(job_id)
    assert reasons(job.rejected) == {"c0": "duplicate"}
    assert await weights_of(combiner, job) == shares(1, 1)


async def test_one_object_counts_for_one_client(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 2) as fleet:
        job_id = await combiner.operator.start_job(training(seed))
        tasks = await fleet.tasks()
        update_id = await fleet.clients[0].train(tasks[0], 0)
        await fleet.clients[1].send(fleet.clients[1].update(tasks[1], update_id))
        job = await combiner.operator.wait_job(job_id)
    assert reasons(job.rejected) == {"c1": "duplicate"}
    assert job.rejected[0].detail == "this object was received before"
    assert await weights_of(combiner, job) == shares(1)


async def test_an_update_sent_again_changes_nothing_at_any_time(combiner: Replica) -> None:
    """Before its job is over, after, and when the uploads of the round are gone."""
    seed = await put_seed(combiner)
    async with Connected(combiner, 2) as fleet:
        client = fleet.clients[0]
        job_id = await combiner.operator.start_job(training(seed))
        tasks = await fleet.tasks()
        message = client.update(tasks[0], await client.upload(one_hot(0)))
        for _ in range(3):
            assert (await client.send(message)).response == "RECEIVED ModelUpdate  from client  "
        await fleet.clients[1].train(tasks[1], 1)
        job = await combiner.operator.wait_job(job_id)
        upload = ObjectKey("uploads", message.model_update_id)

        async def is_gone() -> bool:
            return await combiner.store.head(upload) is None

        await eventually(is_gone, "the end of the round's uploads")
        await client.send(message)
        assert await combiner.operator.get_job(job_id) == job
    assert not job.rejected
    assert await weights_of(combiner, job) == shares(1, 1)


async def test_a_late_update_does_not_enter_the_next_round(combiner: Replica) -> None:
    """Android always says that it is round 1, so the round's id must not matter either."""
    seed = await put_seed(combiner)
    async with Connected(combiner, 2) as fleet:
        first = await combiner.operator.start_job(training(seed, buffer_size=1))
        early, late = await fleet.tasks()
        await fleet.clients[0].train(early, 0)
        await combiner.operator.wait_job(first)
        second = await combiner.operator.start_job(training(seed, clients_required=2))
        tasks = await fleet.tasks()
        await fleet.clients[1].train(late, 7)
        await fleet.clients[0].train(tasks[0], 0)
        await fleet.clients[1].train(tasks[1], 1)
        job = await combiner.operator.wait_job(second)
        ended = await combiner.operator.get_job(first)
    assert reasons(ended.rejected) == {"c1": "late"}
    assert not job.rejected
    assert await weights_of(combiner, job) == shares(1, 1)


@pytest.mark.parametrize("echoed", ["correlation_id", "config", "job"])
async def test_a_task_is_known_by_whatever_its_client_echoes(combiner: Replica, echoed: str) -> None:
    """0.17 and later send no correlation id, Android no config of its own; the C++ client neither in meta."""
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        client = fleet.clients[0]
        job_id = await combiner.operator.start_job(training(seed))
        task = await fleet.streams[0].next()
        message = client.update(task, await client.upload(one_hot(0)))
        if echoed == "correlation_id":
            message.meta = json.dumps({"training_metadata": {"num_examples": 3}, "config": '{"round_id": 1}'})
        else:
            message.correlation_id = ""
        if echoed == "job":
            config = {key: value for key, value in config_of(task).items() if key != "_task_id"}
            message.meta = json.dumps({"training_metadata": {"num_examples": 3}})
            message.config = json.dumps(config)
        await client.send(message)
        job = await combiner.operator.wait_job(job_id)
    assert list(job.accepted) == ["c0"]


async def test_validation_answers_are_means_at_the_model(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 3, VALIDATION_STREAM) as fleet:
        config = training(seed, task="validation", clients_required=3, round_id="")
        job_id = await combiner.operator.start_job(config)
        tasks = await fleet.tasks()
        for index, task in enumerate(tasks):
            assert isinstance(task.request, fedn_pb2.ModelValidationRequest)
            assert not task.request.is_inference
            more = {"extra": 5.0} if index == 2 else {"nan": float("nan")}
            await fleet.clients[index].validate(task, loss=float(index), **more)
        job = await combiner.operator.wait_job(job_id)
    assert (job.state, job.model_id, job.parent_model_id) == (pb.SUCCEEDED, "", seed)
    assert list(job.accepted) == ["c0", "c1", "c2"]
    assert json.loads(job.answers[2].data) == {"loss": 2.0, "extra": 5.0}
    model = await combiner.operator.describe_model(seed)
    assert dict(model.metrics) == {"loss": 1.0, "extra": 5.0}
    assert {m.client: dict(m.metrics) for m in model.client_metrics} == {
        "c0": {"loss": 0.0},
        "c1": {"loss": 1.0},
        "c2": {"loss": 2.0, "extra": 5.0},
    }


async def test_inference_answers_are_kept_and_are_no_metrics(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 1, VALIDATION_STREAM) as fleet:
        job_id = await combiner.operator.start_job(training(seed, task="inference", round_id=""))
        task = await fleet.streams[0].next()
        assert isinstance(task.request, fedn_pb2.ModelValidationRequest)
        assert task.request.is_inference
        await fleet.clients[0].validate(task, y=3.0)
        job = await combiner.operator.wait_job(job_id)
    assert (job.state, job.kind) == (pb.SUCCEEDED, pb.INFERENCE)
    assert [(answer.client, json.loads(answer.data)) for answer in job.answers] == [("c0", {"y": 3.0})]
    assert not (await combiner.operator.describe_model(seed)).metrics


async def test_answers_that_one_message_has_no_room_for_follow(
    combiner: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator, "ANSWERS_IN_MESSAGE", 30)
    seed = await put_seed(combiner)
    async with Connected(combiner, 5, VALIDATION_STREAM) as fleet:
        config = training(seed, task="validation", clients_required=5, round_id="")
        job_id = await combiner.operator.start_job(config)
        for index, task in enumerate(await fleet.tasks()):
            await fleet.clients[index].validate(task, loss=float(index))
        watched = await combiner.operator.wait_job(job_id)
    async with grpc.aio.insecure_channel(combiner.address) as channel:
        stub = combiner_pb2_grpc.JobsStub(channel)
        message = await stub.Get(pb.JobRequest(job_id=job_id))
        assert message.more_answers
        assert [answer.client for answer in message.answers] == ["c0", "c1"]
        request = pb.AnswersRequest(job_id=job_id, after="c1")
        rest = [answer.client async for answer in stub.Answers(request)]
        assert rest == ["c2", "c3", "c4"]
    [listed] = await combiner.operator.list_jobs()
    for job in (watched, listed, await combiner.operator.get_job(job_id)):
        assert [json.loads(answer.data)["loss"] for answer in job.answers] == [0, 1, 2, 3, 4]
        assert not job.more_answers


async def test_a_validation_ends_with_its_known_failures(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 2, VALIDATION_STREAM) as fleet:
        job_id = await combiner.operator.start_job(training(seed, task="validation"))
        first, second = await fleet.tasks()
        await fleet.clients[0].fail(first)
        await fleet.clients[1].validate(second, loss=1.0)
        job = await combiner.operator.wait_job(job_id)
    assert job.state == pb.SUCCEEDED
    assert reasons(job.failed) == {"c0": "client_failed"}


async def test_an_answer_beyond_64_kib_is_too_large(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 1, VALIDATION_STREAM) as fleet:
        client = fleet.clients[0]
        job_id = await combiner.operator.start_job(training(seed, task="validation"))
        message = client.messages.validation(await fleet.streams[0].next(), {"x": 1.0})
        message.data = "x" * (3 << 20)
        await client.send(message)
        job = await combiner.operator.wait_job(job_id)
    assert reasons(job.rejected) == {"c0": "too_large"}
    assert job.state == pb.FAILED


async def test_a_validation_cannot_be_answered_with_an_update(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 1, VALIDATION_STREAM) as fleet:
        client = fleet.clients[0]
        job_id = await combiner.operator.start_job(training(seed, task="validation"))
        task = await fleet.streams[0].next()
        as_training = Task(task.kind, fedn_pb2.TaskRequest(data=task.request.data, correlation_id=task.id))
        await client.train(as_training, 0)
        await client.validate(task, loss=1.0)
        job = await combiner.operator.wait_job(job_id)
    assert job.state == pb.SUCCEEDED
    assert reasons(job.rejected) == {"c0": "not_asked"}


async def test_statuses_that_are_no_failures_change_nothing(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        client = fleet.clients[0]
        job_id = await combiner.operator.start_job(training(seed))
        task = await fleet.streams[0].next()
        for status in (client.messages.received(task), client.messages.started(task)):
            await client.link.connector.SendStatus(status)
        await _warn(client, "no JSON")
        await _warn(client, '{"correlationId": "of-nobody"}')
        await _warn(combiner.client("other"), json.dumps({"correlationId": task.id}))
        assert not (await combiner.operator.get_job(job_id)).failed
        await client.train(task, 0)
        assert (await combiner.operator.wait_job(job_id)).state == pb.SUCCEEDED


async def _warn(client: Client, data: str) -> None:
    status = client.messages.failed(_any_task(), "Oops")
    status.data = data
    reply = await client.link.connector.SendStatus(status)
    assert reply.response == "Status received."


def _any_task() -> Task:
    task = Task.of(fedn_pb2.TaskRequest())
    assert task is not None
    return task
