"""The combiner on FEDn's 0.6 wire: bytes, statuses and answers of every rpc that is not a stream."""

from __future__ import annotations

import re
from typing import Any

import grpc
import grpc.aio
import pytest

from fedcombiner.wire.pb import fedn_pb2
from tests.rpc.combiner_kit import (
    DEADLINE,
    TRAINING_STREAM,
    VALIDATION_STREAM,
    Connected,
    Replica,
    Stack,
    eventually,
    put_seed,
    reasons,
    training,
    until_job,
    until_streams,
)

PACKAGES = pytest.mark.parametrize("package", ["grpc", "fedn"])
C1 = b"\x0a\x04\x12\x02c1"  # a message whose first field is the client c1, role WORKER


async def call(replica: Replica, method: str, request: bytes = b"") -> bytes:
    """Bytes in, bytes out: nothing of ours reads or writes the messages."""
    channel = replica.operator.link
    reply: bytes = await channel.unary_unary(method)(request, timeout=DEADLINE)
    return reply


async def refused(replica: Replica, method: str, request: bytes = b"") -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(replica, method, request)
    return caught.value


async def control(replica: Replica, rpc: str, **parameters: object) -> Any:
    request = fedn_pb2.ControlRequest(
        parameter=[fedn_pb2.Parameter(key=k, value=str(v)) for k, v in parameters.items()]
    )
    reply = await call(replica, f"/grpc.Control/{rpc}", request.SerializeToString())
    return (
        fedn_pb2.ReportResponse if rpc in ("Report", "Configure") else fedn_pb2.ControlResponse
    ).FromString(reply)


async def refused_control(replica: Replica, rpc: str, **parameters: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await control(replica, rpc, **parameters)
    return caught.value


# ---- golden vectors of section 1.4

GOLDEN = [
    ("Connector/SendHeartbeat", C1, b"\x0a\x04\x12\x02c1\x12\x12Heartbeat received"),
    ("Connector/SendHeartbeat", b"", b"\x0a\x00\x12\x12Heartbeat received"),
    ("Connector/SendStatus", C1, b"\x12\x10Status received."),
    ("Combiner/SendModelUpdate", C1, b"\x12\x23RECEIVED ModelUpdate  from client  "),
    ("Combiner/SendModelValidation", C1, b"\x12\x27RECEIVED ModelValidation  from client  "),
    ("Connector/AcceptingClients", b"", b"\x08\x01"),
    ("Connector/ListActiveClients", b"\x10\x01", b""),
    ("Control/FlushAggregationQueue", b"", b"\x0a\x07Success"),
    ("Control/Configure", b"", b""),
]


@PACKAGES
@pytest.mark.parametrize(("rpc", "request_bytes", "reply"), GOLDEN)
async def test_answers_have_fedns_bytes(
    combiner: Replica, package: str, rpc: str, request_bytes: bytes, reply: bytes
) -> None:
    assert await call(combiner, f"/{package}.{rpc}", request_bytes) == reply


@PACKAGES
async def test_active_clients_have_fedns_bytes(combiner: Replica, package: str) -> None:
    client = combiner.client("c1", package=package)
    client.open()
    await until_streams(combiner, 1)
    reply = await call(combiner, f"/{package}.Connector/ListActiveClients", b"\x10\x01")
    assert reply == b"\x0a\x04\x12\x02c1"


async def test_start_has_fedns_bytes(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    parameters = {"task": "training", "model_id": seed, "round_id": "1", "wait_for_clients": "60"}
    request = fedn_pb2.ControlRequest(
        command=fedn_pb2.START,
        parameter=[fedn_pb2.Parameter(key=k, value=v) for k, v in parameters.items()],
    )
    reply = await call(combiner, "/grpc.Control/Start", request.SerializeToString())
    assert reply[:12] == b"\x12\x2e\x0a\x06job_id\x12\x24"
    assert re.fullmatch(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", reply[12:])
    job = await combiner.operator.get_job(reply[12:].decode())
    assert job.parent_model_id == seed


async def test_report_has_fedns_bytes_and_eight_keys_in_order(combiner: Replica) -> None:
    reply = await call(combiner, "/grpc.Control/Report")
    assert reply.startswith(b"\x12\x0e\x0a\x09queue_len\x12\x010\x12\x17\x0a\x12nr_active_trainers\x12\x010")
    for name in ("a", "b"):
        combiner.client(name).open(TRAINING_STREAM)
    combiner.client("b").open(VALIDATION_STREAM)
    await until_streams(combiner, 3)
    report = await control(combiner, "Report")
    assert not report.HasField("sender")
    assert [(parameter.key, parameter.value) for parameter in report.parameter] == [
        ("queue_len", "0"),
        ("nr_active_trainers", "2"),
        ("nr_active_validators", "1"),
        ("active_trainers", '[name: "a"\n, name: "b"\n]'),
        ("active_validators", '[name: "b"\n]'),
        ("nr_active_clients", "3"),
        ("nr_unprocessed_compute_plans", "0"),
        ("name", "combiner"),
    ]


async def test_report_counts_queued_jobs(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    first = await combiner.operator.start_job(training(seed))
    await until_job(combiner.operator, first, lambda job: job.phase == "waiting", "runs")
    await combiner.operator.start_job(training(seed))
    assert (await combiner.operator.report())["nr_unprocessed_compute_plans"] == "1"


@PACKAGES
@pytest.mark.parametrize("rpc", ["ReassignClient", "ReconnectClient", "AllianceStatusStream"])
async def test_what_fedn_never_built_is_unimplemented(combiner: Replica, package: str, rpc: str) -> None:
    channel = combiner.operator.link
    open_call = channel.unary_stream if rpc == "AllianceStatusStream" else channel.unary_unary
    started = open_call(f"/{package}.Connector/{rpc}")(b"", timeout=DEADLINE)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (started.read() if rpc == "AllianceStatusStream" else started)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == "Method not implemented!"


# ---- Connector


@pytest.mark.parametrize(("channel", "names"), [(0, ["both", "t"]), (1, ["both", "t"]), (3, ["both", "v"])])
async def test_clients_are_listed_by_channel(combiner: Replica, channel: int, names: list[str]) -> None:
    both = combiner.client("both")
    both.open(TRAINING_STREAM)
    both.open(VALIDATION_STREAM)
    combiner.client("t").open(TRAINING_STREAM)
    combiner.client("v").open(VALIDATION_STREAM)
    await combiner.client("beats only").beat()
    await until_streams(combiner, 4)
    request = fedn_pb2.ListClientsRequest(channel=channel)  # type: ignore[arg-type]
    reply = await call(combiner, "/grpc.Connector/ListActiveClients", request.SerializeToString())
    assert [client.name for client in fedn_pb2.ClientList.FromString(reply).client] == names


@pytest.mark.parametrize("channel", [2, 4, 5, 77])
async def test_nobody_is_on_other_channels(combiner: Replica, channel: int) -> None:
    combiner.client("c1").open()
    await until_streams(combiner, 1)
    assert await call(combiner, "/grpc.Connector/ListActiveClients", bytes([0x10, channel])) == b""


async def test_accepting_clients_ends_at_max_clients_on_every_replica(stack: Stack) -> None:
    one, two = await stack.combiner(), await stack.combiner()
    one.client("c1").open()
    await until_streams(one, 1)
    assert await call(two, "/grpc.Connector/AcceptingClients") == b"\x08\x01"
    await control(one, "Configure", max_clients=1)
    assert await call(one, "/grpc.Connector/AcceptingClients") == b""

    async def refuses() -> bool:
        return await call(two, "/grpc.Connector/AcceptingClients") == b""

    await eventually(refuses, "the other replica to learn the setting")


async def test_settings_outlive_the_replica_that_was_told(stack: Stack) -> None:
    one = await stack.combiner()
    one.client("c1").open()
    await until_streams(one, 1)
    await control(one, "Configure", max_clients=1)
    two = await stack.combiner()

    async def refuses() -> bool:
        return await call(two, "/grpc.Connector/AcceptingClients") == b""

    await eventually(refuses, "a new replica to read the settings")


async def test_settings_of_another_version_are_left_alone(combiner: Replica) -> None:
    await combiner.state.settings.put({"max_clients": "∞", "of_tomorrow": "1"})
    await control(combiner, "Configure", max_clients=1)
    combiner.client("c1").open()
    await until_streams(combiner, 1)
    assert await call(combiner, "/grpc.Connector/AcceptingClients") == b""


# ---- Control


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"id": "mine"}, "parameter"),
        ({"max_clients": "8", "server": "x"}, "parameter"),
        ({"max_clients": "0"}, "max_clients"),
        ({"max_clients": "many"}, "max_clients"),
        ({"max_clients": "٣"}, "max_clients"),
    ],
)
async def test_configure_sets_known_settings_only(
    combiner: Replica, parameters: dict[str, str], named: str
) -> None:
    error = await refused_control(combiner, "Configure", **parameters)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert (error.details() or "").startswith(f"{named}: ")
    assert await combiner.state.settings.get() == {}


async def test_stop_cancels_every_open_job_and_says_how_many(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    jobs = [await combiner.operator.start_job(training(seed, round_id=str(n))) for n in range(3)]
    reply = await control(combiner, "Stop")
    assert reply.message == "3 jobs cancelled"
    assert [(p.key, p.value) for p in reply.parameter] == [("cancelled", "3")]
    ended = [await combiner.operator.wait_job(job_id) for job_id in jobs]
    assert {job.reason for job in ended} == {"cancelled by Control.Stop"}
    assert (await control(combiner, "Stop")).message == "0 jobs cancelled"


async def test_stop_cancels_the_named_job_alone(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    first, second = [await combiner.operator.start_job(training(seed)) for _ in range(2)]
    assert (await control(combiner, "Stop", job_id=second)).message == "1 job cancelled"
    assert (await control(combiner, "Stop", job_id=second)).message == "0 jobs cancelled"
    await until_job(combiner.operator, first, lambda job: job.phase == "waiting", "the other one runs on")


# ---- Reducer


async def test_global_model_is_the_newest(combiner: Replica) -> None:
    method = "/grpc.Reducer/GetGlobalModel"
    assert (await refused(combiner, method)).code() == grpc.StatusCode.NOT_FOUND
    await put_seed(combiner)
    seed = await put_seed(combiner)
    reply = fedn_pb2.GetGlobalModelResponse.FromString(await call(combiner, method, C1))
    assert (reply.model_id, reply.receiver.name, reply.sender.name) == (seed, "c1", "combiner")
    async with Connected(combiner, 1) as fleet:
        job_id = await combiner.operator.start_job(training(seed))
        await fleet.clients[0].train(await fleet.streams[0].next(), 0)
        job = await combiner.operator.wait_job(job_id)
    await put_seed(combiner)
    reply = fedn_pb2.GetGlobalModelResponse.FromString(await call(combiner, method, C1))
    assert reply.model_id == job.model_id


# ---- requests by hand


@pytest.mark.parametrize("package", ["grpc", "fedn"])
async def test_a_request_by_hand_reaches_its_receiver_signed(combiner: Replica, package: str) -> None:
    client = combiner.client("c1", package=package)
    stream = client.open()
    await until_streams(combiner, 1)
    request = fedn_pb2.TaskRequest(
        sender=fedn_pb2.Client(name="me"),
        receiver=fedn_pb2.Client(name="c1"),
        model_id="m",
        data='{"round_id": "7"}',
        correlation_id="by-hand",
    )
    reply = await call(combiner, "/grpc.Combiner/SendModelUpdateRequest", request.SerializeToString())
    assert fedn_pb2.Response.FromString(reply).response == "RECEIVED ModelUpdateRequest from client me"
    task = await stream.next()
    assert task.request.sender.role == 1  # COMBINER in FEDn's numbers before 0.20
    assert (task.model_id, task.id, task.request.data) == ("m", "by-hand", '{"round_id": "7"}')


async def test_a_validation_by_hand_reaches_its_receiver(combiner: Replica) -> None:
    stream = combiner.client("c1").open(VALIDATION_STREAM)
    await until_streams(combiner, 1)
    request = fedn_pb2.ModelValidationRequest(receiver=fedn_pb2.Client(name="c1"), model_id="m")
    await call(combiner, "/grpc.Combiner/SendModelValidationRequest", request.SerializeToString())
    task = await stream.next()
    assert (task.model_id, task.request.sender.role) == ("m", 1)


async def test_an_answer_to_a_request_by_hand_counts_in_no_job(combiner: Replica) -> None:
    """Also not in the job that runs meanwhile, even if the request names it; and it is not asked again."""
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        client, stream = fleet.clients[0], fleet.streams[0]
        job_id = await combiner.operator.start_job(training(seed))
        real = await stream.next()
        request = fedn_pb2.TaskRequest(
            receiver=fedn_pb2.Client(name="c0"), data=f'{{"_job_id": "{job_id}"}}', correlation_id="by-hand"
        )
        await call(combiner, "/grpc.Combiner/SendModelUpdateRequest", request.SerializeToString())
        by_hand = await stream.next()
        await client.train(by_hand, 5)
        assert await combiner.state.tasks.claim([]) == []
        await client.train(real, 0)
        job = await combiner.operator.wait_job(job_id)
        assert list(job.accepted) == ["c0"]
        assert reasons(job.rejected) in ({}, {"c0": "not_asked"})
        await stream.cancel()
        again = client.open()
        await until_streams(combiner, 1)
        await call(combiner, "/grpc.Combiner/SendModelUpdateRequest", b"\x12\x04\x12\x02c0" + b"\x2a\x03end")
        assert (await again.next()).id == "end"
