"""Clients of generations that no registry has any more, replayed byte by byte.

FEDn 0.5 to 0.8, its C++ client and its Android client, each with what it says to the discovery and to a
combiner, in its order. Messages are written and read by hand, from the field numbers of their releases, so
that no stub of ours can be wrong on both sides.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import httpx
import numpy as np
from numpy.typing import NDArray

from tests.rpc.combiner_kit import DEADLINE

OLD_WORKER, OLD_COMBINER = 0, 1
INFO, WARNING, AUDIT = 0, 2, 4  # of before 0.20
LOG, UPDATE_REQUEST, UPDATE, VALIDATION_REQUEST, VALIDATION = range(5)
OK, IN_PROGRESS, FAILED = 0, 1, 3
CHUNK = 1024 * 1024
Arrays = Mapping[str, NDArray[Any]]
Fields = dict[int, Any]

# ---- protobuf by hand


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def put(field: int, value: str | bytes | int) -> bytes:
    """One field; nothing for a default, as proto3 writes none."""
    if isinstance(value, int):
        return varint(field << 3) + varint(value) if value else b""
    data = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(data)) + data if data else b""


def fields_of(message: bytes) -> Fields:
    """Of a message with varints and lengths only; the last of a field counts."""
    found: Fields = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = number()
        if tag & 7 == 0:
            found[tag >> 3] = number()
        else:
            assert tag & 7 == 2, f"wire type {tag & 7}"
            size = number()
            found[tag >> 3] = message[at : at + size]
            at += size
    return found


def client(name: str, client_id: str = "", role: int = OLD_WORKER) -> bytes:
    return put(1, role) + put(2, name) + put(3, client_id)


def text_of(fields: Fields, field: int) -> str:
    return bytes(fields.get(field, b"")).decode()


# ---- generations


@dataclass(frozen=True)
class Generation:
    """Attributes:
    package: of its services.
    streams: how it gets its tasks, and what each stream carries where it does not say so.
    assign: asks the discovery; returns the answer's body.
    download, checksum: paths of the compute package; none: it has none.
    timestamp: of Status and ModelValidation.
    uploads: how often it sends an update, each time under an id of its own; the last one counts.
    statuses: it says what it does.
    client_id: it has one.
    blob: its models are float32 without a header.
    """

    name: str
    package: str
    streams: Mapping[str, int]
    assign: Callable[[httpx.AsyncClient, str, str], Any]
    download: str = "/download_package"
    checksum: str = "/get_package_checksum"
    timestamp: Callable[[], bytes] = lambda: b"2024-01-04 12:30:00.123456"
    uploads: int = 1
    statuses: bool = True
    client_id: bool = False
    blob: bool = False
    user_agent: str = ""


async def _assign_05(http: httpx.AsyncClient, name: str, client_id: str) -> Any:
    answer = await http.get("/assign", params={"name": name}, headers={"Authorization": "Token None"})
    body = answer.json()
    assert body["package"] == "remote"  # read first, whatever the status
    assert body["fqdn"] == "None"
    return {**body, "helper": body["model_type"]}


async def _assign_06(http: httpx.AsyncClient, name: str, client_id: str) -> Any:
    asked = {"client_id": name, "preferred_combiner": False}
    answer = await http.post("/add_client", json=asked, headers={"Authorization": "Token None"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["fqdn"] is None
    return {**body, "helper": body["helper_type"]}


async def _assign_cpp(http: httpx.AsyncClient, name: str, client_id: str) -> Any:
    asked = {"client_id": client_id, "name": name, "package": "remote", "preferred_combiner": ""}
    answer = await http.post("/add_client", json=asked)
    body = answer.json()
    return {**body, "helper": body["helper_type"]}


async def _assign_android(http: httpx.AsyncClient, name: str, client_id: str) -> Any:
    asked = {"client_id": client_id, "preferred_combiner": None, "name": name}
    headers = {"Authorization": "Token t0k", "Accept": "application/json", "User-Agent": "ktor-client"}
    answer = await http.post("/add_client", json=asked, headers=headers)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    known = {"status", "host", "fqdn", "ip", "port", "helper_type", "package", "client_id"}
    assert body.keys() <= known, "an unknown key is the end of the answer to this client"
    return {**body, "helper": body["helper_type"]}


TWO_STREAMS = {"ModelUpdateRequestStream": UPDATE, "ModelValidationRequestStream": VALIDATION}
ONE_STREAM = {"TaskStream": 0}
GENERATIONS: Mapping[str, Generation] = {
    generation.name: generation
    for generation in (
        Generation("0.5.0", "grpc", TWO_STREAMS, _assign_05, "/context", "/checksum"),
        Generation("0.6.2", "grpc", TWO_STREAMS, _assign_06),
        Generation("0.7.0", "grpc", TWO_STREAMS, _assign_06, uploads=2),
        Generation(
            "0.8.0", "grpc", ONE_STREAM, _assign_06, timestamp=lambda: put(1, 1_707_436_800) + put(2, 5_000)
        ),
        Generation(
            "cpp",
            "fedn",
            ONE_STREAM,
            _assign_cpp,
            "",
            timestamp=lambda: put(1, 1_707_436_800),
            statuses=False,
            client_id=True,
        ),
        Generation(
            "android",
            "grpc",
            {"ModelUpdateRequestStream": UPDATE},
            _assign_android,
            "",
            statuses=False,
            blob=True,
            user_agent="grpc-java-okhttp/1.57.2",
        ),
    )
}


@dataclass(frozen=True)
class Task:
    kind: int
    fields: Fields
    raw: bytes

    @property
    def model_id(self) -> str:
        return text_of(self.fields, 3)

    @property
    def data(self) -> str:
        return text_of(self.fields, 4)

    @property
    def id(self) -> str:
        return text_of(self.fields, 5)


class ReplayClient:
    def __init__(self, generation: Generation, name: str) -> None:
        self.generation = generation
        self.name = name
        self.client_id = str(uuid.uuid5(uuid.NAMESPACE_DNS, name)) if generation.client_id else ""
        self.identity = self.client_id or name
        self.tasks: asyncio.Queue[Task] = asyncio.Queue()
        self.calls: list[str] = []
        self._reading: list[asyncio.Task[None]] = []
        self._channel: grpc.aio.Channel | None = None
        self._metadata: tuple[tuple[str, str], ...] = ()

    @property
    def sender(self) -> bytes:
        return client(self.name, self.client_id)

    # ---- joining

    async def join(self, http: httpx.AsyncClient) -> str:
        """Ask for a combiner, fetch the package, subscribe. Returns the helper that it was told to load."""
        told = await self.generation.assign(http, self.name, self.client_id or self.name)
        assert told["status"] == "assigned"
        await self._fetch_package(http)
        agent = self.generation.user_agent
        options = (("grpc.primary_user_agent", agent),) if agent else ()
        self._channel = grpc.aio.insecure_channel(f"{told['host']}:{told['port']}", options=options)
        if self.generation.blob:
            self._metadata = (("authorization", "Token t0k"), ("client", self.name), ("grpc-server", "c"))
        await self.beat()  # often the first call, before any stream
        for rpc, kind in self.generation.streams.items():
            self._reading.append(asyncio.create_task(self._read(rpc, kind), name=f"{rpc} of {self.name}"))
        self._reading.append(asyncio.create_task(self._keep_beating(), name=f"heart of {self.name}"))
        return str(told["helper"])

    async def _fetch_package(self, http: httpx.AsyncClient) -> None:
        if not self.generation.download:
            return
        package = await http.get(self.generation.download)
        assert "filename=" in package.headers["Content-Disposition"]
        checksum = (await http.get(self.generation.checksum)).json()["checksum"]
        assert hashlib.sha256(package.content).hexdigest() == checksum

    async def _read(self, rpc: str, kind: int) -> None:
        async for raw in self._stream(f"Combiner/{rpc}", put(1, self.sender)):
            fields = fields_of(raw)
            sender = fields_of(fields[1])
            assert sender[1] == OLD_COMBINER, "the client would drop a request of this role"
            await self.tasks.put(Task(kind or fields[9], fields, raw))

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(2)
            await self.beat()

    async def next(self) -> Task:
        return await asyncio.wait_for(self.tasks.get(), DEADLINE)

    async def close(self) -> None:
        """Also how a crash looks from outside: the connection is gone."""
        for task in self._reading:
            task.cancel()
        if self._reading:
            await asyncio.wait(self._reading)
        if self._channel is not None:
            await self._channel.close()

    # ---- calls, without stubs

    def _path(self, method: str) -> str:
        self.calls.append(method)
        return f"/{self.generation.package}.{method}"

    async def _call(self, method: str, request: bytes) -> bytes:
        assert self._channel is not None
        call = self._channel.unary_unary(self._path(method))
        return bytes(await call(request, metadata=self._metadata, timeout=DEADLINE))

    async def _stream(self, method: str, request: bytes) -> AsyncIterator[bytes]:
        assert self._channel is not None
        async for raw in self._channel.unary_stream(self._path(method))(request, metadata=self._metadata):
            yield raw

    async def beat(self) -> None:
        await self._call("Connector/SendHeartbeat", put(1, self.sender))

    async def say(self, text: str, level: int, kind: int, data: str = "") -> None:
        status = put(1, self.sender) + put(2, text) + put(3, level) + put(4, data)
        await self._call("Connector/SendStatus", status + put(6, self.generation.timestamp()) + put(7, kind))

    # ---- models

    async def download(self, model_id: str) -> bytes:
        content = b""
        async for raw in self._stream("ModelService/Download", put(4, model_id)):
            part = fields_of(raw)
            assert part.get(3, OK) in (OK, IN_PROGRESS), "the client gives the task up"
            content += part.get(1, b"")
        return content

    async def upload(self, content: bytes) -> str:
        assert self._channel is not None
        update_id = str(uuid.uuid4())

        async def parts() -> AsyncIterator[bytes]:
            for start in range(0, len(content), CHUNK):
                yield put(3, content[start : start + CHUNK]) + put(4, update_id) + put(5, IN_PROGRESS)
            yield put(4, update_id)

        call = self._channel.stream_unary(self._path("ModelService/Upload"))
        answer = fields_of(await call(parts(), metadata=self._metadata, timeout=DEADLINE))
        assert answer.get(3, OK) == OK
        return update_id

    # ---- tasks, in the generation's order

    async def train(self, task: Task, change: float, num_examples: int) -> Arrays:
        """Add `change` to every weight. Returns the weights that it was given."""
        assert task.kind == UPDATE
        if self.generation.statuses:
            await self.say("Received model update request.", AUDIT, UPDATE_REQUEST, request_json(task))
            text = f"\t Starting processing of training request for model_id {task.model_id}"
            await self.say(text, INFO, LOG)
        given = self.decode(await self.download(task.model_id))
        content = self.encode({name: array + np.float32(change) for name, array in given.items()})
        update_ids = [await self.upload(content) for _ in range(self.generation.uploads)]
        await self._call("Combiner/SendModelUpdate", self.update(task, update_ids[-1], num_examples))
        if self.generation.statuses:
            await self.say("Model update completed.", AUDIT, UPDATE)
        return given

    async def upload_nothing(self, task: Task) -> None:
        await self._call("Combiner/SendModelUpdate", self.update(task, await self.upload(b""), 1))

    async def fail(self, task: Task) -> None:
        text = f"Client {self.name} failed to complete model update."
        await self.say(text, WARNING, LOG, request_json(task))

    async def validate(self, task: Task, **metrics: float) -> None:
        assert task.kind == VALIDATION
        await self.download(task.model_id)
        answer = put(1, self.sender) + put(2, task.fields[1]) + put(3, task.model_id)
        answer += put(4, json.dumps(metrics))
        if self.generation.client_id:  # C++ echoes nothing but the session
            answer += put(6, self.generation.timestamp()) + put(7, '{"validation_metadata": {}}')
        else:
            answer += put(5, task.id) + put(6, self.generation.timestamp())
        await self._call("Combiner/SendModelValidation", answer)

    def update(self, task: Task, update_id: str, num_examples: int) -> bytes:
        """A ModelUpdate."""
        head = put(1, self.sender) + put(2, task.fields[1]) + put(3, task.model_id) + put(4, update_id)
        stamp = put(6, "2024-01-04 12:30:00")
        training = {"num_examples": num_examples, "batch_size": 1, "epochs": 1, "lr": 1}
        if self.generation.client_id:
            meta = '{"training_metadata": {"epochs": 1, "batch_size": 1, "num_examples": 3000}}'
            head = put(1, self.sender) + put(3, task.model_id) + put(4, update_id)
            return head + stamp + put(7, meta) + put(8, task.data)
        if self.generation.blob:
            training["num_examples"] = 1
            meta = json.dumps({"training_metadata": training, "config": '{"round_id":1}'})
        else:
            timings = {"fetch_model": 0.1, "exec_training": 0.2, "upload_model": 0.1, "processing_time": 0.4}
            meta = json.dumps({**timings, "training_metadata": training, "config": task.data})
        return head + put(5, task.id) + stamp + put(7, meta)

    # ---- formats

    def encode(self, arrays: Arrays) -> bytes:
        if self.generation.blob:
            return b"".join(array.astype("<f4").tobytes() for array in arrays.values())
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    def decode(self, content: bytes) -> Arrays:
        if self.generation.blob:
            return {"all": np.frombuffer(content, "<f4")}
        with np.load(io.BytesIO(content)) as archive:
            return dict(archive)


def request_json(task: Task) -> str:
    """As `MessageToJson` writes the request."""
    return json.dumps({"modelId": task.model_id, "data": task.data, "correlationId": task.id})
