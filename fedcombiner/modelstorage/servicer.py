"""FEDn's ModelService in front of a model store.

Chunks pass as raw bytes, one at a time: the next one is read when the store has taken the last, and written
when the peer has taken the last, so flow control reaches through from disk to peer and back. INTERNAL,
RESOURCE_EXHAUSTED and FAILED_PRECONDITION never come from here, because they end FEDn's clients.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from functools import partial
from typing import Final, TypeAlias, TypeVar

import grpc.aio
import structlog

from fedcombiner.modelstorage.limits import TransferLimits, TransferMeter
from fedcombiner.modelstorage.store import (
    Buffer,
    ModelStore,
    ObjectInfo,
    ObjectKey,
    ObjectNotFound,
    ObjectTooLarge,
    ObjectWriter,
    StoreUnavailable,
)
from fedcombiner.modelstorage.traffic import Traffic
from fedcombiner.modelstorage.transfer import PeerStalled, Transfer
from fedcombiner.modelstorage.unread import Unread
from fedcombiner.modelstorage.upload import UploadProtocol, decode
from fedcombiner.servicekit.backoff import Backoff, retry
from fedcombiner.servicekit.caller import share_of
from fedcombiner.servicekit.errors import InvalidArgument, Unavailable
from fedcombiner.wire.chunks import encode_response
from fedcombiner.wire.pb.fedn_pb2 import FAILED, IN_PROGRESS, OK
from fedcombiner.wire.registry import raw_messages

log = structlog.get_logger(__name__)

_T = TypeVar("_T")
_Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"

_Receive: TypeAlias = Callable[[], Awaitable[Buffer | None]]

_RECEIVED: Final = "Got model successfully."
# An upload has so many bytes in hand, or all of them, before it waits for a slot to run.
_FIRST_BYTES: Final = 64 << 10
# How long an answer waits for the end of a stream whose last message has come.
END_SECONDS: Final = 5.0


class ModelServiceServicer:
    """Upload into `uploads`, Download from `models` or else from `uploads`.

    Upload answers when the object is durable. An id that is complete already keeps its bytes, and the answer
    is OK all the same: a client may repeat an Upload whose answer was lost. Whatever else ends a stream,
    nothing is left of it.

    Download of an id that does not exist, or is not an id, answers FAILED. A model that cannot be read to its
    end ends with an error, never cleanly: FEDn's clients take a cleanly ended stream for a whole model.
    """

    def __init__(
        self, store: ModelStore, limits: TransferLimits | None = None, meter: TransferMeter | None = None
    ) -> None:
        self._store = store
        self._limits = limits or TransferLimits()
        self._meter = meter or TransferMeter()
        self.uploads = Traffic(self._limits, partial(self._meter.happened, "in"))
        self.downloads = Traffic(self._limits, partial(self._meter.happened, "out"))
        self._unread = Unread(self._limits.max_slow_transfers, partial(self._meter.happened, "out"))
        self._backoff = Backoff()

    @raw_messages
    async def Upload(self, request_iterator: object, context: _Context) -> bytes:
        """Take a model in chunks; answers when it is durable. docs/models.md says what is refused."""
        with self.uploads.transfer(share_of(context)) as transfer:
            protocol = UploadProtocol()
            receive = partial(self._receive, protocol, transfer, context)
            await self.uploads.begin(transfer)
            head, more = await _first_bytes(receive)
            if head:
                await self.uploads.run(transfer)
            async with AsyncExitStack() as stack:
                writer = await self._retried(partial(self._writer, stack, protocol.key))
                await writer.write(head)
                while more and (data := await receive()) is not None:
                    await writer.write(data)
                    await self.uploads.share(transfer)
                info = await writer.commit()
        log.info("model received", model_id=info.key.id, size=info.size)
        await _end_of_requests(context)
        return encode_response(info.key.id, OK, message=_RECEIVED)

    @raw_messages
    async def Download(self, request: bytes, context: _Context) -> None:
        """Send a model in chunks and an end mark, or one message FAILED if there is none."""
        model_id = decode(request).id
        with self.downloads.transfer(share_of(context)) as transfer:
            await self.downloads.begin(transfer)
            await self.downloads.run(transfer)
            try:
                found = await self._send_from_anywhere(model_id, transfer, context)
                await transfer.peer(context.write(encode_response(model_id, OK if found else FAILED)))
            except PeerStalled:
                self._unread.add(context)
                raise

    async def find(self, model_id: str) -> ObjectInfo | None:
        """The complete object that a Download of this id sends; None if there is none, or it is no id."""
        for key in _places(model_id):
            if info := await self._retried(partial(self._store.head, key)):
                return info
        return None

    async def _receive(
        self, protocol: UploadProtocol, transfer: Transfer, context: _Context
    ) -> Buffer | None:
        message = await transfer.peer(context.read())
        if not isinstance(message, bytes):  # grpc.aio.EOF
            raise protocol.end()
        data = protocol.feed(message)
        transfer.moved(len(data or b""))
        if data is None:
            transfer.received()
        self._meter.received(len(data or b""))
        return data

    async def _writer(self, stack: AsyncExitStack, key: ObjectKey) -> ObjectWriter:
        info = await self._store.head(key)
        if info:
            return _Unneeded(info, self._limits.max_bytes)
        return await stack.enter_async_context(self._store.writer(key, max_bytes=self._limits.max_bytes))

    async def _send_from_anywhere(self, model_id: str, transfer: Transfer, context: _Context) -> bool:
        for key in _places(model_id):
            try:
                await self._send(key, transfer, context)
            except ObjectNotFound:
                continue
            return True
        return False

    async def _send(self, key: ObjectKey, transfer: Transfer, context: _Context) -> None:
        """Send all chunks, going on at the same byte when the store has been away in between."""
        offset, found = 0, False
        while True:
            chunks, chunk = await self._retried(partial(self._open, key, offset, found))
            if not found:
                # Apart from the first chunk: gRPC cannot end a call, and keeps its data, while the headers
                # wait together with a chunk that the peer does not take.
                await context.send_initial_metadata(())
                found = True
            try:
                async with aclosing(chunks):
                    while chunk is not None:
                        await transfer.peer(context.write(encode_response(key.id, IN_PROGRESS, chunk)))
                        offset += len(chunk)
                        transfer.moved(len(chunk))
                        self._meter.sent(len(chunk))
                        await self.downloads.share(transfer)
                        chunk = await anext(chunks, None)
                return
            except StoreUnavailable as error:
                log.warning("download interrupted", key=str(key), offset=offset, reason=error.message)
            except ObjectNotFound:
                raise _removed(key) from None

    async def _open(
        self, key: ObjectKey, offset: int, found: bool
    ) -> tuple[AsyncGenerator[bytes, None], bytes | None]:
        chunks = self._store.reader(key, offset)
        try:
            return chunks, await anext(chunks, None)
        except ObjectNotFound:
            if found:
                raise _removed(key) from None
            raise

    async def _retried(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        timeout = self._limits.store_timeout
        return await retry(attempt, on=StoreUnavailable, timeout=timeout, backoff=self._backoff)


async def _first_bytes(receive: _Receive) -> tuple[Buffer, bool]:
    """The beginning of a model, and whether more of it may follow."""
    head = bytearray()
    while len(head) < _FIRST_BYTES:
        data = await receive()
        if data is None:
            return head, False
        if not head and len(data) >= _FIRST_BYTES:
            return data, True
        head += data
    return head, True


def _removed(key: ObjectKey) -> Unavailable:
    """The error for an object that is gone after it was found: no other object may follow in its reply."""
    return Unavailable(f"{key} was removed while it was sent")


def _places(model_id: str) -> tuple[ObjectKey, ...]:
    """Where a model of this id may be; nowhere if it is no id."""
    try:
        return ObjectKey("models", model_id), ObjectKey("uploads", model_id)
    except InvalidArgument:
        return ()


async def _end_of_requests(context: _Context) -> None:
    """Read what is left of the requests: nothing but the end of their stream, from any client that we know.

    An answer before that end makes gRPC reset the stream behind it. A gateway that sees both at once passes
    the reset on, and the client takes its upload for failed.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(END_SECONDS):
            while isinstance(await context.read(), bytes):
                pass


class _Unneeded:
    """The writer of an object that is complete already: the stream is read to its end, and dropped."""

    def __init__(self, info: ObjectInfo, max_bytes: int) -> None:
        self._info = info
        self._left = max_bytes
        self._max_bytes = max_bytes

    async def write(self, data: Buffer) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise ObjectTooLarge(self._info.key, self._max_bytes)

    async def commit(self) -> ObjectInfo:
        return self._info
