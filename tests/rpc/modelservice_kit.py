"""A ModelService behind a real server, and the calls that FEDn's clients make to it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
import pytest

from fedcombiner.modelstorage.disk import DiskStore
from fedcombiner.modelstorage.limits import TransferLimits, TransferMeter
from fedcombiner.modelstorage.servicer import ModelServiceServicer
from fedcombiner.modelstorage.store import ModelStore, ObjectInfo, ObjectKey
from fedcombiner.servicekit.metrics import Metrics
from fedcombiner.servicekit.rpc import build_server
from fedcombiner.wire.chunks import CHUNK_SIZE, encode_request
from fedcombiner.wire.pb.fedn_pb2 import IN_PROGRESS, OK, ModelResponse
from fedcombiner.wire.registry import add_services

DEADLINE = 20
NEVER_FOR_CLIENTS = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNKNOWN,
}


@dataclass
class Calls:
    """The calls that FEDn's clients make, on a channel."""

    channel: grpc.aio.Channel

    def open_upload(self, package: str = "grpc") -> grpc.aio.StreamUnaryCall[bytes, ModelResponse]:
        call = self.channel.stream_unary(
            f"/{package}.ModelService/Upload", response_deserializer=ModelResponse.FromString
        )
        return call(timeout=DEADLINE)

    async def upload(self, *messages: bytes, package: str = "grpc") -> ModelResponse:
        call = self.open_upload(package)
        for message in messages:
            await call.write(message)
        await call.done_writing()
        return await call

    def open_download(
        self, model_id: str, package: str = "grpc"
    ) -> grpc.aio.UnaryStreamCall[bytes, ModelResponse]:
        call = self.channel.unary_stream(
            f"/{package}.ModelService/Download", response_deserializer=ModelResponse.FromString
        )
        return call(encode_request(model_id, OK), timeout=DEADLINE)

    async def download(self, model_id: str, package: str = "grpc") -> list[ModelResponse]:
        return [message async for message in self.open_download(model_id, package)]

    async def content(self, model_id: str) -> bytes:
        messages = await self.download(model_id)
        assert messages[-1] == ModelResponse(id=model_id, status=OK)
        return b"".join(message.data for message in messages)

    async def refusal(self, *messages: bytes) -> grpc.aio.AioRpcError:
        """The error that ends an upload of these messages."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.upload(*messages)
        assert caught.value.code() not in NEVER_FOR_CLIENTS
        return caught.value


@dataclass
class Service(Calls):
    """A running ModelService, what it was told to count, and its store."""

    store: ModelStore
    servicer: ModelServiceServicer
    address: str = ""
    received: list[int] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)


@asynccontextmanager
async def serve(
    store: ModelStore, *, address: str = "127.0.0.1:0", **limits: float
) -> AsyncIterator[Service]:
    server = build_server(Metrics().rpc)
    received: list[int] = []
    sent: list[int] = []
    events: list[tuple[str, str]] = []
    meter = TransferMeter(received.append, sent.append, lambda way, event: events.append((way, event)))
    servicer = ModelServiceServicer(store, TransferLimits(**limits), meter)  # type: ignore[arg-type]
    add_services(server, {"ModelService": servicer})
    port = server.add_insecure_port(address)
    await server.start()
    at = f"{'[::1]' if '[' in address else '127.0.0.1'}:{port}"
    async with grpc.aio.insecure_channel(at) as channel:
        yield Service(channel, store, servicer, at, received, sent, events)
    await server.stop(None)


@asynccontextmanager
async def started(store: DiskStore) -> AsyncIterator[DiskStore]:
    await store.start()
    try:
        yield store
    finally:
        await store.close()


def messages_of(data: bytes, model_id: str = "m1", size: int = CHUNK_SIZE) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield encode_request(model_id, IN_PROGRESS, data[start : start + size])
    yield encode_request(model_id, OK)


def chunk(data: bytes, model_id: str = "m1") -> bytes:
    return encode_request(model_id, IN_PROGRESS, data)


async def eventually(condition: Callable[[], bool], what: str) -> None:
    async def hold() -> None:
        while not condition():
            await asyncio.sleep(0.005)

    try:
        await asyncio.wait_for(hold(), DEADLINE)
    except TimeoutError:
        pytest.fail(f"waited {DEADLINE} s for {what}")


def data_of(size: int, seed: int = 1) -> bytes:
    return bytes((index * 31 + index // 251 + seed) % 256 for index in range(65_537)) * (size // 65_537 + 1)


async def put(store: ModelStore, key: ObjectKey, data: bytes) -> ObjectInfo:
    async with store.writer(key, max_bytes=1 << 30) as writer:
        await writer.write(data)
        return await writer.commit()
