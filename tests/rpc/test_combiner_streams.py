"""Streams of tasks: three views of one queue, deliveries that are not lost, and how streams end."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest
from combiner.clients.streams import MAX_STREAMS_OF_CLIENT, TOO_MANY

from fedcombiner.wire.eras import PREDICTION, TRAINING, VALIDATION
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.rpc.combiner_kit import (
    DEADLINE,
    SHORT,
    TRAINING_STREAM,
    VALIDATION_STREAM,
    Connected,
    Replica,
    Stack,
    config_of,
    eventually,
    put_seed,
    reasons,
    shares,
    training,
    until_job,
    until_streams,
    weights_of,
)


async def by_hand(replica: Replica, name: str, mark: str, rpc: str = "SendModelUpdateRequest") -> None:
    """A task without a job; who has read it has read everything before it."""
    message = fedn_pb2.TaskRequest(receiver=fedn_pb2.Client(name=name), correlation_id=mark)
    if rpc == "SendModelUpdateRequest":
        await replica.operator.link.unary_unary(
            f"/fedn.Combiner/{rpc}", request_serializer=fedn_pb2.TaskRequest.SerializeToString
        )(message)
    else:
        await replica.operator.link.unary_unary(f"/fedn.Combiner/{rpc}")(message.SerializeToString())


async def test_each_stream_shows_its_kind_of_task(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    client = combiner.client("c0")
    train, validate = client.open(), client.open(VALIDATION_STREAM)
    await until_streams(combiner, 2)
    for kind in ("validation", "training", "inference"):
        job_id = await combiner.operator.start_job(training(seed, task=kind))
        task = await (train if kind == "training" else validate).next()
        kinds = {"training": TRAINING, "validation": VALIDATION, "inference": PREDICTION}
        assert task.kind == kinds[kind]
        assert config_of(task)["_job_id"] == job_id
        await combiner.operator.cancel_job(job_id)


async def test_a_task_stream_shows_all_kinds(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    stream = combiner.client("c0", package="fedn", generation="0.8").open("TaskStream")
    await until_streams(combiner, 1)
    for kind, number in (("validation", VALIDATION), ("training", TRAINING), ("inference", PREDICTION)):
        job_id = await combiner.operator.start_job(training(seed, task=kind))
        task = await stream.next()
        assert (task.kind, task.model_id) == (number, seed)
        await combiner.operator.cancel_job(job_id)


async def test_a_training_request_says_all_that_a_client_needs(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        job_id = await combiner.operator.start_job(training(seed, session_id="s1", epochs=3, _secret="x"))
        task = await fleet.streams[0].next()
    request, data = task.request, config_of(task)
    assert request.sender == fedn_pb2.Client(name="combiner", role=1)  # type: ignore[arg-type]
    assert request.receiver == fedn_pb2.Client(name="c0")
    assert task.id == data["_task_id"] == request.correlation_id
    assert data["_job_id"] == job_id
    assert (data["round_id"], data["session_id"], data["epochs"]) == ("1", "s1", "3")
    assert "_secret" not in data
    assert all(isinstance(value, str) for value in data.values())


@pytest.mark.parametrize("package", ["grpc", "fedn"])
async def test_two_streams_of_one_name_get_each_task_once(combiner: Replica, package: str) -> None:
    client = combiner.client("c0", package=package)
    streams = [client.open(), client.open()]
    await until_streams(combiner, 2)
    sent = [f"t{number}" for number in range(20)]
    for mark in sent:
        await by_hand(combiner, "c0", mark)
    got: list[str] = []

    async def read(stream: object) -> None:
        while len(got) < len(sent):
            got.append((await stream.next()).id)  # type: ignore[attr-defined]

    readers = [asyncio.create_task(read(stream)) for stream in streams]
    await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED, timeout=20)
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)
    assert sorted(got) == sorted(sent)


async def test_two_streams_on_two_replicas_get_each_task_once(stack: Stack) -> None:
    one, two = await stack.combiner(), await stack.combiner()
    seed = await put_seed(one)
    streams = [one.client("c0").open(), two.client("c0").open()]
    await until_streams(one, 1)
    await until_streams(two, 1)
    reads = [asyncio.ensure_future(stream.call.read()) for stream in streams]
    for number in range(10):
        job_id = await one.operator.start_job(training(seed, round_id=str(number)))
        await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED, timeout=20)
        await by_hand(two, "c0", f"after-{number}")
        got: list[fedn_pb2.TaskRequest] = []
        while len(got) < 2:
            await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED, timeout=20)
            for index, read in enumerate(reads):
                if read.done():
                    got.append(read.result())
                    reads[index] = asyncio.ensure_future(streams[index].call.read())
        assert [request.model_id for request in got].count(seed) == 1
        await one.operator.cancel_job(job_id)
    for stream in streams:
        stream.call.cancel()
    await asyncio.wait(reads)


async def test_a_task_comes_again_when_its_stream_does(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    client = combiner.client("c0")
    stream = client.open()
    job_id = await combiner.operator.start_job(training(seed))
    first = await stream.next()
    await stream.cancel()
    second = await client.open().next()
    assert second.id == first.id
    assert second.request.data == first.request.data
    await client.train(second, 0)
    job = await combiner.operator.wait_job(job_id)
    assert await weights_of(combiner, job) == shares(1)


async def test_the_third_dropped_delivery_is_the_last(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    client = combiner.client("c0")
    job_id = await combiner.operator.start_job(training(seed))
    for _ in range(3):
        stream = client.open()
        await stream.next()
        await stream.cancel()
    job = await combiner.operator.wait_job(job_id)
    assert job.state == pb.FAILED
    assert reasons(job.failed) == {"c0": "client_lost"}
    assert job.failed[0].detail == "task delivered too often"


async def test_a_lost_client_that_answers_in_time_is_taken_back(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 2) as fleet:
        job_id = await combiner.operator.start_job(training(seed, clients_required=2, clients_requested=2))
        tasks = await fleet.tasks()
        lost = fleet.clients[0]
        # Required are both, but one is lost: hopeless, unless it is told before the other's end.
        await combiner.operator.cancel_job(job_id)
        job_id = await combiner.operator.start_job(training(seed, clients_requested=2, clients_required=1))
        tasks = await fleet.tasks()
        await fleet.streams[0].cancel()
        for _ in range(2):
            stream = lost.open()
            await stream.next()
            await stream.cancel()
        await until_job(combiner.operator, job_id, lambda job: bool(job.failed), "c0 is lost")
        await lost.train(tasks[0], 0)
        await fleet.clients[1].train(tasks[1], 1)
        job = await combiner.operator.wait_job(job_id)
    assert list(job.accepted) == ["c0", "c1"]
    assert not job.failed
    assert await weights_of(combiner, job) == shares(1, 1)


async def test_a_stream_sends_no_headers_before_its_first_message(combiner: Replica) -> None:
    stream = combiner.client("c0").open()
    headers = asyncio.ensure_future(stream.call.initial_metadata())
    await until_streams(combiner, 1)
    await combiner.client("c1").beat()  # a whole round trip later
    assert not headers.done()
    await by_hand(combiner, "c0", "t1")
    await stream.next()
    await asyncio.wait_for(headers, 20)


@pytest.mark.parametrize(
    "rpc",
    [
        "ModelUpdateRequestStream",
        VALIDATION_STREAM,
        "TaskStream",
        "ModelUpdateStream",
        "ModelValidationStream",
    ],
)
@pytest.mark.parametrize("package", ["grpc", "fedn"])
async def test_streams_end_with_unavailable_when_the_combiner_goes(
    combiner: Replica, rpc: str, package: str
) -> None:
    client = combiner.client("c0", package=package)
    stream = client.open(rpc)
    read = asyncio.ensure_future(stream.call.read())
    if rpc in ("ModelUpdateStream", "ModelValidationStream"):
        await client.beat()  # on the same connection, after the stream
    else:
        await until_streams(combiner, 1)
    await combiner.app.drain()
    assert await stream.status() == grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.aio.AioRpcError):
        await read
    assert len(combiner.app.hub) == 0


async def test_a_stream_that_comes_while_draining_is_held(combiner: Replica) -> None:
    await combiner.app.drain()
    stream = combiner.client("c0").open()
    await combiner.client("c1").beat()
    assert not stream.call.done()
    await combiner.app.dismiss()
    assert await stream.status() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("name", ["", "x" * 257, "line\nbreak", "nul\0"])
@pytest.mark.parametrize("rpc", ["ModelUpdateRequestStream", VALIDATION_STREAM, "TaskStream"])
async def test_a_name_that_cannot_be_one_is_held_and_refused(
    combiner: Replica, monkeypatch: pytest.MonkeyPatch, name: str, rpc: str
) -> None:
    monkeypatch.setattr("combiner.servicers.streams.REFUSAL_HOLD_S", 0.2)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    stream = combiner.client(name).open(rpc)
    assert await stream.status() == grpc.StatusCode.UNAVAILABLE
    assert loop.time() - begun >= 0.2
    assert "sender.name" in await stream.call.details()
    assert len(combiner.app.hub) == 0


async def test_answers_of_nobody_are_confirmed_and_forgotten(combiner: Replica) -> None:
    nobody = combiner.client("")
    assert (await nobody.beat()).response == "Heartbeat received"
    await nobody.send(fedn_pb2.ModelUpdate(sender=fedn_pb2.Client(), model_update_id="x"))
    assert await combiner.operator.list_clients(all=True) == []


async def test_one_client_does_not_wait_for_another_that_does_not_read(combiner: Replica) -> None:
    """A stream whose client takes nothing holds its own tasks only."""
    slow = combiner.client("slow").open()
    quick = combiner.client("quick").open()
    await until_streams(combiner, 2)
    for number in range(30):
        await by_hand(combiner, "slow", f"s{number}")
    await by_hand(combiner, "quick", "q")
    assert (await quick.next()).id == "q"
    assert [(await slow.next()).id for _ in range(30)] == [f"s{number}" for number in range(30)]


async def test_a_client_whose_heart_stops_is_not_active(stack: Stack) -> None:
    combiner = await stack.combiner(windows=SHORT)
    alive, dead = combiner.client("alive"), combiner.client("dead")
    alive.open()
    dead.open()
    alive.keep_beating()
    await until_streams(combiner, 2)

    async def only_one() -> bool:
        return [client.client for client in await combiner.operator.list_clients() if client.active] == [
            "alive"
        ]

    await eventually(only_one, "the silent client to count as gone")


async def test_of_hundreds_of_streams_of_one_client_the_newest_stay(
    combiner: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("combiner.servicers.streams.REFUSAL_HOLD_S", 0.01)
    seed = await put_seed(combiner)
    client = combiner.client("c0")
    streams = [client.open() for _ in range(900)]

    async def the_others_ended() -> bool:
        return sum(stream.call.done() for stream in streams) == 900 - MAX_STREAMS_OF_CLIENT

    await eventually(the_others_ended, "all but the newest to end")
    ended = [stream for stream in streams if stream.call.done()]
    assert {await stream.call.code() for stream in ended} == {grpc.StatusCode.UNAVAILABLE}
    assert {await stream.call.details() for stream in ended} == {TOO_MANY}
    await until_streams(combiner, MAX_STREAMS_OF_CLIENT)
    await combiner.operator.start_job(training(seed))
    tasks = [asyncio.ensure_future(stream.next()) for stream in streams if stream not in ended]
    done, others = await asyncio.wait(tasks, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == 1
    for task in others:
        task.cancel()


async def test_two_views_and_their_duplicates_are_never_ended(combiner: Replica) -> None:
    client = combiner.client("c0")
    streams = [client.open(rpc) for _ in range(4) for rpc in (TRAINING_STREAM, VALIDATION_STREAM)]
    await until_streams(combiner, len(streams))
    other = combiner.client("c1").open()
    await until_streams(combiner, len(streams) + 1)
    assert not any(stream.call.done() for stream in [*streams, other])
