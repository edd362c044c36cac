"""Upload and download of models in chunks, without ever holding a model that is in a file.

Both are safe to repeat, and repeat themselves: a transfer that fails in a way that may pass is done again as
a whole, under the same id, until `patience` seconds have gone by without progress. The server keeps the
first complete bytes of an id, so a second upload changes nothing.
"""

from __future__ import annotations

import asyncio
import io
import os
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Final, Protocol

import grpc.aio

from fedcombiner.client.errors import ModelNotFound, TransferBroken
from fedcombiner.client.patience import Patience, Progress
from fedcombiner.wire.chunks import CHUNK_SIZE, Buffer, decode_response, encode_request, status_name
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.registry import OLD_PACKAGE

UPLOAD: Final = f"/{OLD_PACKAGE}.ModelService/Upload"
DOWNLOAD: Final = f"/{OLD_PACKAGE}.ModelService/Download"
PATIENCE: Final = 120.0  # seconds

_BATCH: Final = 4 * CHUNK_SIZE  # read or written by a thread at a time: the hop costs more than a chunk
_NOT_YET: Final = (fedn_pb2.UNKNOWN, fedn_pb2.IN_PROGRESS_OK)


class Sink(Protocol):
    """Where a download may go, besides a file. `write` must neither block nor keep the buffer."""

    def write(self, data: Buffer, /) -> object: ...


async def upload(
    channel: grpc.aio.Channel,
    model_id: str,
    source: Path | bytes,
    *,
    progress: Progress | None = None,
    patience: float = PATIENCE,
) -> int:
    """Store the bytes of `source` under `model_id`; they are durable on return. Returns their number.

    Raises:
        InvalidArgument: the server refuses the id or the size.
        TransferBroken: no progress for `patience` seconds.
        ServiceError: any other answer of the server that trying again does not change.
        OSError: the file cannot be read.
    """
    size = source.stat().st_size if isinstance(source, Path) else len(source)
    watch = Patience(patience, size=size, progress=progress)
    return await watch.repeat(lambda: _send(channel, model_id, source, watch))


async def download(
    channel: grpc.aio.Channel,
    model_id: str,
    target: Path | Sink,
    *,
    progress: Progress | None = None,
    patience: float = PATIENCE,
) -> int:
    """Fetch a model into a file, which appears complete or not at all, or into a sink. Returns its size.

    A sink cannot take back what it got: a download into one is not repeated once it has begun.

    Raises:
        ModelNotFound: the server has no complete model of that id.
        TransferBroken: no progress for `patience` seconds, or a sink got only a part.
        ServiceError: any other answer of the server that trying again does not change.
        OSError: the file cannot be written.
    """
    watch = Patience(patience, progress=progress)
    if not isinstance(target, Path):
        return await watch.repeat(lambda: _pour(channel, model_id, target, watch), repeatable=False)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        size = await watch.repeat(lambda: _save(channel, model_id, part, watch))
        await asyncio.to_thread(os.replace, part, target)
    finally:
        part.unlink(missing_ok=True)
    return size


async def download_bytes(channel: grpc.aio.Channel, model_id: str, *, patience: float = PATIENCE) -> bytes:
    """A whole model, for those that fit in memory. Raises as `download` does."""
    watch = Patience(patience)

    async def attempt() -> bytes:
        buffer = io.BytesIO()
        await _pour(channel, model_id, buffer, watch)
        return buffer.getvalue()

    return await watch.repeat(attempt)


async def _send(channel: grpc.aio.Channel, model_id: str, source: Path | bytes, watch: Patience) -> int:
    call: grpc.aio.StreamUnaryCall[bytes, bytes] = channel.stream_unary(UPLOAD)()
    try:
        size = await _write_all(call, model_id, source, watch)
        reply = decode_response(await watch.of(call))
    finally:
        call.cancel()
    if reply.status != fedn_pb2.OK:
        raise TransferBroken(f"the server answered {status_name(reply.status)} to the upload of {model_id}")
    return size


async def _write_all(
    call: grpc.aio.StreamUnaryCall[bytes, bytes], model_id: str, source: Path | bytes, watch: Patience
) -> int:
    sent = 0
    # Both: the call has ended before we have. What it ended with says why, and the caller asks for that.
    with suppress(asyncio.InvalidStateError, grpc.aio.InternalError):
        async with aclosing(_chunks(source)) as chunks:
            async for chunk in chunks:
                await watch.of(call.write(encode_request(model_id, fedn_pb2.IN_PROGRESS, chunk)))
                sent += len(chunk)
                watch.reached(sent)
        await watch.of(call.write(encode_request(model_id, fedn_pb2.OK)))
        await call.done_writing()
    return sent


async def _chunks(source: Path | bytes) -> AsyncGenerator[memoryview, None]:
    if isinstance(source, bytes):
        for chunk in _split(source):
            yield chunk
        return
    file = await asyncio.to_thread(open, source, "rb", buffering=0)
    try:
        while batch := await asyncio.to_thread(file.read, _BATCH):
            for chunk in _split(batch):
                yield chunk
    finally:
        file.close()


def _split(data: bytes) -> list[memoryview]:
    view = memoryview(data)
    return [view[start : start + CHUNK_SIZE] for start in range(0, len(view), CHUNK_SIZE)]


async def _save(channel: grpc.aio.Channel, model_id: str, path: Path, watch: Patience) -> int:
    size, batch, batched = 0, list[Buffer](), 0
    file = await asyncio.to_thread(open, path, "wb")
    with file:
        async with aclosing(_receive(channel, model_id, watch)) as chunks:
            async for chunk in chunks:
                batch.append(chunk)
                batched += len(chunk)
                if batched >= _BATCH:
                    await asyncio.to_thread(file.writelines, batch)
                    batch, batched = [], 0
                size += len(chunk)
        await asyncio.to_thread(file.writelines, batch)
    return size


async def _pour(channel: grpc.aio.Channel, model_id: str, sink: Sink, watch: Patience) -> int:
    size = 0
    async with aclosing(_receive(channel, model_id, watch)) as chunks:
        async for chunk in chunks:
            sink.write(chunk)
            size += len(chunk)
    return size


async def _receive(channel: grpc.aio.Channel, model_id: str, watch: Patience) -> AsyncGenerator[Buffer, None]:
    """The chunks of a model; ends normally only after the end mark."""
    start: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(DOWNLOAD)
    call = start(encode_request(model_id, fedn_pb2.OK))
    received, complete = 0, False
    try:
        while isinstance(message := await watch.of(call.read()), bytes):  # not EOF
            chunk = decode_response(message)
            if chunk.status == fedn_pb2.FAILED:
                raise ModelNotFound(f"the server has no model {model_id!r}")
            complete = chunk.status == fedn_pb2.OK
            if chunk.status not in (fedn_pb2.OK, fedn_pb2.IN_PROGRESS, *_NOT_YET):
                raise TransferBroken(f"unexpected status {status_name(chunk.status)}")
            if len(chunk.data):
                received += len(chunk.data)
                watch.reached(received)
                yield chunk.data
    finally:
        call.cancel()
    if not complete:
        raise TransferBroken(f"the download of {model_id} ended after {received} bytes without its end mark")
