"""One stack that is given bad input, and short ways to give it. What comes of it is a line of text:

INVALID_ARGUMENT id: '../x' is not valid; ...     a call that was refused
OK                                                a call that was answered
ignored                                           answered, and counted as a message of nobody
rejected not_a_model: the file of 5 bytes ...     an update or an answer, as its job lists it
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import io
import os
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio
import numpy as np
import psutil
from google.protobuf.message import Message

from fedcombiner.client.messages import Task
from fedcombiner.wire.chunks import encode_request
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from fedcombiner.wire.pb.fedn_pb2 import IN_PROGRESS, OK
from fedcombiner.wire.registry import OWN_FILES
from tests.rpc.combiner_kit import (
    DEADLINE,
    VALIDATION_STREAM,
    Client,
    Replica,
    Stack,
    TaskStream,
    one_hot,
    put_seed,
    training,
    until_job,
    until_streams,
)

MAX_MODEL_BYTES = 12 << 20
NAMELESS = "nameless_messages_total"
REJECTED = "updates_rejected_total"


@dataclass
class Bench:
    """A combiner with its model service, a seed model, and the client c0, which trains and validates."""

    replica: Replica
    seed: str
    client: Client
    trains: TaskStream
    validates: TaskStream
    idle_bytes: int

    @classmethod
    async def open(cls, stack: Stack) -> Bench:
        replica = await stack.combiner(max_model_bytes=MAX_MODEL_BYTES)
        client = replica.client("c0")
        trains, validates = client.open(), client.open(VALIDATION_STREAM)
        client.keep_beating()
        await until_streams(replica, 2)
        return cls(replica, await put_seed(replica), client, trains, validates, resident())

    @property
    def data(self) -> Path:
        return self.replica.store._root.parent

    async def is_well(self) -> bool:
        """Whether the server answers, and holds nothing that somebody waits for."""
        await self.client.beat()
        return not len(self.replica.app.inbox)

    async def call(self, method: str, request: bytes, timeout: float = DEADLINE) -> str:
        """What a call with one request ends with."""
        try:
            if is_streamed(method):
                call = self.replica.operator.link.unary_stream(method)(request, timeout=timeout)
                while await call.read() is not grpc.aio.EOF:
                    pass
            else:
                await self.replica.operator.link.unary_unary(method)(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            return refusal(error)
        return "OK"

    def counted(self, metric: str, **labels: str) -> float:
        return self.replica.metrics.registry.get_sample_value(f"fedcombiner_{metric}", labels) or 0.0

    async def job(self, **config: object) -> str:
        return await self.replica.operator.start_job(training(self.seed, **config))

    async def outcome(self, job_id: str, client: str = "c0") -> str:
        """What became of a client's answer, as soon as the job says."""

        def listed(job: pb.Job) -> str:
            for name in ("rejected", "failed"):
                for entry in getattr(job, name):
                    if entry.client == client:
                        return f"{name} {entry.reason}: {entry.detail}"
            return "accepted" if client in job.accepted else ""

        job = await until_job(self.replica.operator, job_id, lambda job: bool(listed(job)), "an outcome")
        return listed(job)


Act: TypeAlias = Callable[[Bench], Awaitable[str]]


def is_streamed(method: str) -> bool:
    _, service, name = method[1:].replace("/", ".").rsplit(".", 2)
    found = [file.services_by_name.get(service) for file in (fedn_pb2.DESCRIPTOR, *OWN_FILES)]
    methods = next(descriptor for descriptor in found if descriptor).methods_by_name
    return name in methods and methods[name].server_streaming


def refusal(error: Any) -> str:
    return f"{error.code().name} {error.details()}"


# ---- calls


def calls(rpc: str, request: Message | bytes = b"") -> Act:
    """A call of `Service/Method`, of FEDn's package unless it is ours."""
    package = "combiner.v1" if rpc.split("/")[0] in ("Jobs", "Sessions", "Models", "Clients") else "grpc"
    content = request if isinstance(request, bytes) else request.SerializeToString()
    return lambda bench: bench.call(f"/{package}.{rpc}", content)


def ignored(rpc: str, request: Message) -> Act:
    """As `calls`, and "ignored" if it was answered and counted."""

    async def act(bench: Bench) -> str:
        label = rpc.split("/")[1]
        before = bench.counted(NAMELESS, rpc=label)
        outcome = await calls(rpc, request)(bench)
        counted = bench.counted(NAMELESS, rpc=label) - before
        return "ignored" if outcome == "OK" and counted == 1 else f"{outcome}, {counted:g} counted"

    return act


def control(rpc: str, **parameters: object) -> Act:
    """Of Control, with these parameters."""
    return calls(f"Control/{rpc}", parameters_of(parameters))


def starts(**changes: object) -> Act:
    """Control.Start with a good config, but for the changes; None leaves a key out."""

    async def act(bench: Bench) -> str:
        config = {"task": "training", "model_id": bench.seed, "round_id": "1", **changes}
        request = parameters_of({key: value for key, value in config.items() if value is not None})
        return await bench.call("/grpc.Control/Start", request.SerializeToString())

    return act


def parameters_of(values: Mapping[str, object]) -> fedn_pb2.ControlRequest:
    parameters = [fedn_pb2.Parameter(key=key, value=str(value)) for key, value in values.items()]
    return fedn_pb2.ControlRequest(parameter=parameters)


def starts_session(session_id: str = "", model_id: str = "", **config: str) -> Act:
    request = pb.StartSessionRequest(session_id=session_id, model_id=model_id, config=config)
    return calls("Sessions/Start", request)


# ---- transfers


def chunk(data: bytes = b"x", model_id: str = "m1") -> bytes:
    return encode_request(model_id, IN_PROGRESS, data)


def end(model_id: str = "m1", status: int = OK, data: bytes = b"") -> bytes:
    return encode_request(model_id, status, data)


def uploads(*messages: bytes) -> Act:
    """With gRPC's blocking client, as FEDn's clients do: the other one hides why a write failed."""

    def upload(address: str) -> str:
        with grpc.insecure_channel(address) as channel:
            try:
                channel.stream_unary("/grpc.ModelService/Upload")(iter(messages), timeout=DEADLINE)
            except grpc.RpcError as error:
                return refusal(error)
        return "OK"

    return lambda bench: asyncio.to_thread(upload, bench.replica.address)


def downloads(model_id: str) -> Act:
    async def act(bench: Bench) -> str:
        call = bench.replica.operator.link.unary_stream(
            "/grpc.ModelService/Download", response_deserializer=fedn_pb2.ModelResponse.FromString
        )
        answers = [answer async for answer in call(encode_request(model_id, OK), timeout=DEADLINE)]
        return " ".join(fedn_pb2.ModelStatus.Name(answer.status) for answer in answers)

    return act


def puts(content: Callable[[], bytes], name: str = "") -> Act:
    """A complete upload that is to become a model."""

    async def act(bench: Bench) -> str:
        model_id = await bench.client.upload(content())
        return await calls("Models/Put", pb.PutModelRequest(model_id=model_id, name=name))(bench)

    return act


# ---- answers to a task


def updates(content: Callable[[], bytes]) -> Act:
    """An update with this content, of a client that was asked for one."""

    async def act(bench: Bench) -> str:
        job_id = await bench.job()
        task = await bench.trains.next()
        await bench.client.send(bench.client.update(task, await bench.client.upload(content())))
        return await bench.outcome(job_id)

    return act


def tells(meta: str) -> Act:
    """A good update with this meta."""

    async def act(bench: Bench) -> str:
        job_id = await bench.job()
        task = await bench.trains.next()
        update_id = await bench.client.upload(one_hot(0))
        await bench.client.send(bench.client.update(task, update_id, tell=meta))
        return await bench.outcome(job_id)

    return act


def names_update(update_id: str) -> Act:
    """An update that names this upload."""

    async def act(bench: Bench) -> str:
        job_id = await bench.job()
        task = await bench.trains.next()
        await bench.client.send(bench.client.update(task, update_id))
        return await bench.outcome(job_id)

    return act


async def trains_unasked(bench: Bench) -> str:
    job_id = await bench.job()
    task = await bench.trains.next()
    stranger = bench.replica.client("stranger")
    await stranger.train(task, 1)
    outcome = await bench.outcome(job_id, "stranger")
    await bench.client.train(task, 0)
    assert (await bench.replica.operator.wait_job(job_id)).state == pb.SUCCEEDED
    return outcome


async def trains_late(bench: Bench) -> str:
    job_id = await bench.job()
    task = await bench.trains.next()
    await bench.client.train(task, 0)
    await bench.replica.operator.wait_job(job_id)
    await bench.client.train(task, 1)
    return await bench.outcome(job_id)


async def trains_twice(bench: Bench) -> str:
    """The second one comes while the round waits for another client, which then ends it."""
    other = bench.replica.client("other")
    stream = other.open()
    await until_streams(bench.replica, 3)
    job_id = await bench.job(clients_required=2)
    task, others = await bench.trains.next(), await stream.next()
    await bench.client.train(task, 0)
    await bench.client.train(task, 1)
    outcome = await bench.outcome(job_id)
    await other.train(others, 1)
    assert (await bench.replica.operator.wait_job(job_id)).state == pb.SUCCEEDED
    await stream.cancel()
    await until_streams(bench.replica, 2)
    return outcome


def validates(data: str) -> Act:
    """The answer to a validation."""

    async def act(bench: Bench) -> str:
        job_id = await bench.job(task="validation")
        message = bench.client.messages.validation(await bench.validates.next(), {})
        message.data = data
        await bench.client.send(message)
        return await bench.outcome(job_id)

    return act


async def validates_unasked(bench: Bench) -> str:
    """Nothing in it says which job it means, so it is counted only."""
    job_id = await bench.job(task="validation")
    task = await bench.validates.next()
    before = bench.counted(REJECTED, reason="not_asked")
    await bench.replica.client("stranger").validate(task, loss=0.0)
    counted = bench.counted(REJECTED, reason="not_asked") - before
    await bench.client.validate(task, loss=0.0)
    assert await bench.outcome(job_id) == "accepted"
    return "rejected not_asked" if counted == 1 else "not counted"


def warns(data: str) -> Act:
    """A WARNING status with this data changes nothing about the task it may mean."""

    async def act(bench: Bench) -> str:
        job_id = await bench.job()
        task = await bench.trains.next()
        status = bench.client.messages.failed(any_task(), "Oops")
        status.data = data
        await bench.client.link.connector.SendStatus(status, timeout=DEADLINE)
        await bench.client.train(task, 0)
        return await bench.outcome(job_id)

    return act


def any_task() -> Task:
    task = Task.of(fedn_pb2.TaskRequest())
    assert task is not None
    return task


# ---- contents


def npz(entries: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


def npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()


GOOD = npy(np.zeros(8, np.float32))


def objects() -> bytes:
    return npz([("w.npy", npy(np.array([None] * 8, dtype=object)))])


class Trap:
    """Unpickled, it makes a directory where the process runs."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("unpickled",)


def pickled() -> bytes:
    return pickle.dumps(Trap())


def pickled_array() -> bytes:
    return npz([("w.npy", npy(np.array([Trap()] * 8, dtype=object)))])


def twice_named() -> bytes:
    """Two entries named w.npy. `zipfile` warns of the second, so it is renamed in the bytes."""
    return npz([("w.npy", GOOD), ("v.npy", GOOD)]).replace(b"v.npy", b"w.npy")


@cache
def bomb(inflated: int = 10 << 30, *, shape: tuple[int, ...] | None = None, told: int | None = None) -> bytes:
    """An archive whose one array inflates to `inflated` bytes of zeros, a thousandth of that in size.

    `shape` is in its header (default: all of it), `told` the size in the archive's directory.
    """
    elements = inflated // 4
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape or (elements,)}, }}"
    text = header.ljust(117) + "\n"
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()
    # The same 64 MiB again and again: a full flush makes each piece independent of those before.
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = deflater.compress(head) + deflater.flush(zlib.Z_FULL_FLUSH)
    piece = deflater.compress(bytes(64 << 20)) + deflater.flush(zlib.Z_FULL_FLUSH)
    data = start + piece * (inflated >> 26) + deflater.flush()
    size = told or len(head) + inflated
    name, wide = b"w.npy", struct.pack("<2HQ", 1, 8, size)
    in_common = (0, 8, 0, 0, 0, len(data), 0xFFFFFFFF, len(name), len(wide))
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 45, *in_common) + name + wide
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 45, 45, *in_common, 0, 0, 0, 0, 0) + name + wide
    start_of_directory = len(local) + len(data)
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(entry), start_of_directory, 0)
    return b"".join((local, data, entry, tail))


def nested(depth: int = 10_000) -> str:
    return '{"a":' * depth + "1" + "}" * depth


# ---- what must not happen


def resident() -> int:
    """Bytes of memory that this process needs, without what its allocator keeps for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


@contextmanager
def writes_outside(*allowed: Path) -> Iterator[list[str]]:
    """The paths outside of `allowed` that this process makes, changes or opens for writing meanwhile."""
    found: list[str] = []
    _WATCHES.append((found, tuple(str(path) for path in allowed)))
    try:
        yield found
    finally:
        _WATCHES.pop()


_WATCHES: list[tuple[list[str], tuple[str, ...]]] = []
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink")
_TWO_PATHS = ("os.rename", "os.link", "os.symlink")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _WATCHES:
        return
    found, allowed = _WATCHES[-1]
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    # A name in an open directory (-1: there is none) is looked up by `shutil.rmtree` only.
    if not writes and (event not in _CHANGES or arguments[-1] != -1):
        return
    for path in arguments[: 2 if event in _TWO_PATHS else 1]:
        # Open descriptors are numbers; compiled modules are written by the interpreter.
        text = os.fsdecode(path) if isinstance(path, str | bytes | Path) else "/dev/fd"
        if "__pycache__" not in text and not text.startswith((*allowed, "/dev/")):
            found.append(text)


sys.addaudithook(_audit)  # cannot be taken back; without a watch it does nothing
