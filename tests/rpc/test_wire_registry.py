"""One set of handlers under every name, through a real server."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from fedcombiner.wire.pb import fedn_pb2, fedn_pb2_grpc
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2, combiner_pb2_grpc
from fedcombiner.wire.registry import add_services, raw_messages, service_names, with_package

Context = Any


class Connector:
    """A few methods of each marking; all others are missing."""

    async def SendHeartbeat(self, request: fedn_pb2.Heartbeat, _context: Context) -> fedn_pb2.Response:
        return fedn_pb2.Response(sender=request.sender, response="Heartbeat received")

    @with_package
    async def SendStatus(
        self, _request: fedn_pb2.Status, _context: Context, *, package: str
    ) -> fedn_pb2.Response:
        return fedn_pb2.Response(response=package)

    async def SendModelMetric(self, _request: fedn_pb2.ModelMetric, _context: Context) -> fedn_pb2.Response:
        return fedn_pb2.Response(response="connector")


class Combiner:
    @with_package
    async def TaskStream(
        self, request: fedn_pb2.ClientAvailableMessage, _context: Context, *, package: str
    ) -> AsyncIterator[fedn_pb2.TaskRequest]:
        for number in range(2):
            yield fedn_pb2.TaskRequest(receiver=request.sender, data=f"{package} {number}")

    async def SendModelMetric(self, _request: fedn_pb2.ModelMetric, _context: Context) -> fedn_pb2.Response:
        return fedn_pb2.Response(response="combiner")


class ModelService:
    @raw_messages
    async def Upload(self, requests: AsyncIterator[bytes], _context: Context) -> bytes:
        return b"".join([request async for request in requests])

    @with_package
    @raw_messages
    async def Download(self, request: bytes, _context: Context, *, package: str) -> AsyncIterator[bytes]:
        yield request
        yield fedn_pb2.ModelResponse(message=package).SerializeToString()


class Models:
    async def List(
        self, _request: combiner_pb2.ListModelsRequest, _context: Context
    ) -> AsyncIterator[combiner_pb2.Model]:
        yield combiner_pb2.Model(model_id="m1")


SERVICERS = {
    "Connector": Connector(),
    "Combiner": Combiner(),
    "ModelService": ModelService(),
    "Models": Models(),
}
PACKAGES = pytest.mark.parametrize("package", ["grpc", "fedn"])


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    add_services(server, SERVICERS)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


async def status_of(call: Callable[[], Awaitable[object]]) -> tuple[grpc.StatusCode, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call()
    return caught.value.code(), caught.value.details()


@PACKAGES
async def test_heartbeat_bytes_under_both_names(channel: grpc.aio.Channel, package: str) -> None:
    beat = channel.unary_unary(f"/{package}.Connector/SendHeartbeat")
    assert (
        await beat(bytes.fromhex("0a0412026331")) == bytes.fromhex("0a04120263311212") + b"Heartbeat received"
    )
    assert await beat(b"") == bytes.fromhex("0a001212") + b"Heartbeat received"


@PACKAGES
async def test_a_method_may_know_its_package(channel: grpc.aio.Channel, package: str) -> None:
    send = channel.unary_unary(
        f"/{package}.Connector/SendStatus", response_deserializer=fedn_pb2.Response.FromString
    )
    assert (await send(b"")).response == package


@PACKAGES
async def test_a_stream_may_know_its_package(channel: grpc.aio.Channel, package: str) -> None:
    stream = channel.unary_stream(
        f"/{package}.Combiner/TaskStream", response_deserializer=fedn_pb2.TaskRequest.FromString
    )
    assert [task.data async for task in stream(b"")] == [f"{package} 0", f"{package} 1"]


@PACKAGES
async def test_raw_bytes_pass_untouched(channel: grpc.aio.Channel, package: str) -> None:
    upload = channel.stream_unary(f"/{package}.ModelService/Upload")
    assert await upload(iter([b"\xff\x00", b"not a message"])) == b"\xff\x00not a message"
    download = channel.unary_stream(f"/{package}.ModelService/Download")
    received = [message async for message in download(b"\xff")]
    assert received == [b"\xff", fedn_pb2.ModelResponse(message=package).SerializeToString()]


@pytest.mark.parametrize("service", ["Connector", "Combiner"])
async def test_the_metric_rpc_is_in_both_its_places(channel: grpc.aio.Channel, service: str) -> None:
    stub = getattr(fedn_pb2_grpc, f"{service}Stub")(channel)
    assert (await stub.SendModelMetric(fedn_pb2.ModelMetric())).response == service.lower()


async def test_our_own_services_have_their_own_name(channel: grpc.aio.Channel) -> None:
    stub = combiner_pb2_grpc.ModelsStub(channel)
    assert [model.model_id async for model in stub.List(combiner_pb2.ListModelsRequest())] == ["m1"]
    code, _ = await status_of(lambda: channel.unary_unary("/fedn.Models/Get")(b""))
    assert code is grpc.StatusCode.UNIMPLEMENTED


@PACKAGES
async def test_what_is_not_built_says_so(channel: grpc.aio.Channel, package: str) -> None:
    unary = channel.unary_unary(f"/{package}.Connector/ReassignClient")
    stream = channel.unary_stream(f"/{package}.Connector/AllianceStatusStream")
    expected = (grpc.StatusCode.UNIMPLEMENTED, "Method not implemented!")
    assert await status_of(lambda: unary(b"")) == expected
    assert await status_of(lambda: stream(b"").read()) == expected


def test_names_for_reflection() -> None:
    assert service_names({"Connector": None, "Jobs": None}) == (
        "grpc.Connector",
        "fedn.Connector",
        "combiner.v1.Jobs",
    )


async def test_a_service_that_no_file_defines() -> None:
    with pytest.raises(KeyError, match="Conector"):
        add_services(grpc.aio.server(), {"Conector": object()})
