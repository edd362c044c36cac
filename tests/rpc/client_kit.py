"""A combiner that does what a test tells it to, served by grpc.aio with the real stubs, and clients of it."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from fedcombiner.client import FederatedClient
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.registry import add_services, with_package

DEADLINE = 20.0
CUT = object()


class FakeCombiner:
    """Records what clients say. `errors[rpc]` are the statuses of its next calls, before it works."""

    def __init__(self) -> None:
        self.models: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.downloads: list[str] = []
        self.heartbeats: list[fedn_pb2.Heartbeat] = []
        self.statuses: list[fedn_pb2.Status] = []
        self.updates: list[fedn_pb2.ModelUpdate] = []
        self.validations: list[fedn_pb2.ModelValidation] = []
        self.packages: set[str] = set()
        self.metadata: dict[str, str] = {}
        self.errors: dict[str, list[grpc.StatusCode]] = defaultdict(list)
        self.cut_downloads = 0  # how many of the next downloads end without their end mark
        self.cut_uploads = 0
        self.streams: dict[tuple[str, str], asyncio.Queue[Any]] = {}
        self.opened = 0
        self._changed = asyncio.Condition()

    async def until(self, predicate: Callable[[], object], what: str) -> None:
        try:
            async with asyncio.timeout(DEADLINE), self._changed:
                await self._changed.wait_for(predicate)
        except TimeoutError:
            raise AssertionError(f"waited {DEADLINE} s for {what}") from None

    async def until_open(self, client: str, rpc: str = "ModelUpdateRequestStream") -> None:
        await self.until(lambda: (client, rpc) in self.streams, f"{rpc} of {client}")

    def give(self, client: str, request: Any, rpc: str = "ModelUpdateRequestStream") -> None:
        self.streams[client, rpc].put_nowait(request)

    def cut(self, client: str, rpc: str = "ModelUpdateRequestStream") -> None:
        self.streams.pop((client, rpc)).put_nowait(CUT)

    async def _note(self, rpc: str, context: Any) -> None:
        self.metadata.update(context.invocation_metadata())
        if self.errors[rpc]:
            await context.abort(self.errors[rpc].pop(0), "told to fail")

    async def _changed_now(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def SendHeartbeat(self, request: fedn_pb2.Heartbeat, context: Any) -> fedn_pb2.Response:
        await self._note("SendHeartbeat", context)
        self.heartbeats.append(request)
        await self._changed_now()
        return fedn_pb2.Response(sender=request.sender, response="Heartbeat received")

    async def SendStatus(self, request: fedn_pb2.Status, context: Any) -> fedn_pb2.Response:
        await self._note("SendStatus", context)
        self.statuses.append(request)
        await self._changed_now()
        return fedn_pb2.Response(response="Status received.")

    @with_package
    async def ModelUpdateRequestStream(
        self, request: fedn_pb2.ClientAvailableMessage, context: Any, package: str
    ) -> AsyncIterator[fedn_pb2.TaskRequest]:
        self.packages.add(package)
        async for task in self._stream("ModelUpdateRequestStream", request, context):
            yield task

    async def ModelValidationRequestStream(
        self, request: fedn_pb2.ClientAvailableMessage, context: Any
    ) -> AsyncIterator[fedn_pb2.ModelValidationRequest]:
        async for task in self._stream("ModelValidationRequestStream", request, context):
            yield task

    async def TaskStream(
        self, request: fedn_pb2.ClientAvailableMessage, context: Any
    ) -> AsyncIterator[fedn_pb2.TaskRequest]:
        async for task in self._stream("TaskStream", request, context):
            yield task

    async def _stream(
        self, rpc: str, request: fedn_pb2.ClientAvailableMessage, context: Any
    ) -> AsyncIterator[Any]:
        await self._note(rpc, context)
        queue: asyncio.Queue[Any] = asyncio.Queue()
        self.streams[request.sender.name, rpc] = queue
        self.opened += 1
        await self._changed_now()
        while (task := await queue.get()) is not CUT:
            yield task
        await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")

    async def SendModelUpdate(self, request: fedn_pb2.ModelUpdate, context: Any) -> fedn_pb2.Response:
        await self._note("SendModelUpdate", context)
        self.updates.append(request)
        await self._changed_now()
        return fedn_pb2.Response(response="RECEIVED ModelUpdate  from client  ")

    async def SendModelValidation(self, request: fedn_pb2.ModelValidation, context: Any) -> fedn_pb2.Response:
        await self._note("SendModelValidation", context)
        self.validations.append(request)
        await self._changed_now()
        return fedn_pb2.Response(response="RECEIVED ModelValidation  from client  ")

    async def Upload(
        self, requests: AsyncIterator[fedn_pb2.ModelRequest], context: Any
    ) -> fedn_pb2.ModelResponse:
        await self._note("Upload", context)
        data = bytearray()
        async for request in requests:
            self.uploads.append(request.id)
            data += request.data
            if request.status == fedn_pb2.OK:
                self.models.setdefault(request.id, bytes(data))
                return fedn_pb2.ModelResponse(id=request.id, message="Got model successfully.")
            if self.cut_uploads and len(data) > 1 << 20:
                self.cut_uploads -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        raise AssertionError("no end mark")

    async def Download(
        self, request: fedn_pb2.ModelRequest, context: Any
    ) -> AsyncIterator[fedn_pb2.ModelResponse]:
        await self._note("Download", context)
        self.downloads.append(request.id)
        data = self.models.get(request.id)
        if data is None:
            yield fedn_pb2.ModelResponse(id=request.id, status=fedn_pb2.FAILED)
            return
        for start in range(0, len(data), 1 << 20):
            yield fedn_pb2.ModelResponse(
                id=request.id, status=fedn_pb2.IN_PROGRESS, data=data[start : start + (1 << 20)]
            )
            if self.cut_downloads:
                self.cut_downloads -= 1
                return
        yield fedn_pb2.ModelResponse(id=request.id, status=fedn_pb2.OK)


@asynccontextmanager
async def serving(servicers: dict[str, object], address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """A server of these servicers; gives its address."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_services(server, servicers)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def fake_services(fake: FakeCombiner) -> dict[str, object]:
    return {"Connector": fake, "Combiner": fake, "ModelService": fake}


@asynccontextmanager
async def running(client: FederatedClient) -> AsyncIterator[asyncio.Task[Any]]:
    """Runs a client, and ends it; a client that ended by itself shows why."""
    task = asyncio.create_task(client.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


def training(model_id: str, task_id: str, **config: str) -> fedn_pb2.TaskRequest:
    """A training request as the 0.6 server sends it."""
    data = json.dumps({"round_id": "1", "_task_id": task_id, **config})
    return fedn_pb2.TaskRequest(
        sender=fedn_pb2.Client(name="combiner", role=fedn_pb2.CLIENT),  # COMBINER before 0.20
        model_id=model_id,
        correlation_id=task_id,
        data=data,
        timestamp="2026-01-01 00:00:00.000001",
    )


def validation(model_id: str, task_id: str, *, inference: bool = False) -> fedn_pb2.ModelValidationRequest:
    """A validation request as the 0.6 server sends it."""
    return fedn_pb2.ModelValidationRequest(
        sender=fedn_pb2.Client(name="combiner", role=fedn_pb2.CLIENT),
        model_id=model_id,
        correlation_id=task_id,
        is_inference=inference,
    )
