"""The model service of FEDn's combiner: Upload and Download, and the same models for code in this process.

The rpcs are those of `fedcombiner.modelstorage`; every other method blocks and is for plain threads.
"""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self, runtime_checkable

from combiner.helpers import Helper, temporary_path
from fedcombiner.modelstorage.disk import DiskStore
from fedcombiner.modelstorage.limits import TransferLimits
from fedcombiner.modelstorage.servicer import ModelServiceServicer
from fedcombiner.modelstorage.store import Buffer, ModelStore, ObjectKey, ObjectNotFound
from fedcombiner.servicekit.loopthread import LoopThread
from fedcombiner.wire.chunks import CHUNK_SIZE

__all__ = ["ModelService", "ModelServiceServicer", "ModelStream"]


@runtime_checkable
class ModelStream(Protocol):
    """A model that is read piece by piece, such as the answer of an S3 client."""

    def stream(self, amt: int, /) -> Iterable[bytes]:
        """The model in pieces of about `amt` bytes."""


class ModelService(ModelServiceServicer):
    """Service for handling download and upload of models to the server.

    Blocking methods wait for a store that is away, at most `limits.store_timeout` seconds, and raise
    StoreUnavailable or StoreFull then. Leave the service as a context manager, or `close` it.

    Args:
        store: where the models are; without one, a directory of its own that goes with the service.
        thread: the event loop in which `store`, which was started there, is used. Without one the service
            has a loop of its own, in which it starts and closes the store.
        limits: sizes and times; the defaults of `TransferLimits` without any.
    """

    def __init__(
        self,
        store: ModelStore | None = None,
        *,
        thread: LoopThread | None = None,
        limits: TransferLimits | None = None,
    ) -> None:
        self._owned = ExitStack()
        started = store is not None and thread is not None
        if store is None:
            directory = self._owned.enter_context(tempfile.TemporaryDirectory(prefix="federated-models-"))
            store = DiskStore(Path(directory))
        super().__init__(store, limits)
        self._thread = thread or self._owned.enter_context(LoopThread("the model service"))
        if not started:
            self._own_store(store)

    def _own_store(self, store: ModelStore) -> None:
        try:
            self._owned.callback(lambda: self._thread.call(store.close()))
            self._thread.call(store.start())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give up what is the service's own, after its rpcs have ended. Closing again does nothing."""
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def exist(self, model_id: str) -> bool:
        """Check if a model exists on the server: complete, registered as a model or only uploaded."""
        return self._thread.call(self.find(model_id)) is not None

    def get_tmp_path(self) -> str:
        """The path of a new, empty temporary file `*.npz`, which the caller removes."""
        return temporary_path()

    def load_model_from_BytesIO(self, model_bytesio: io.BytesIO | Buffer, helper: Helper) -> Any:
        """Load a model from a BytesIO object (from its start), or from its bytes.

        Returns what `helper.load` returns; raises what that raises.
        """
        content = model_bytesio.getbuffer() if isinstance(model_bytesio, io.BytesIO) else model_bytesio
        path = Path(self.get_tmp_path())
        try:
            path.write_bytes(content)
            return helper.load(str(path))
        finally:
            path.unlink(missing_ok=True)

    def serialize_model_to_BytesIO(self, model: Any, helper: Helper) -> io.BytesIO:
        """Serialize a model to a BytesIO object, which is positioned at its start.

        Raises what `helper.save` raises.
        """
        path = self.get_tmp_path()
        written = path
        try:
            written = helper.save(model, path) or path
            return io.BytesIO(Path(written).read_bytes())
        finally:
            for made in {path, written}:
                Path(made).unlink(missing_ok=True)

    def get_model(self, id: str) -> io.BytesIO | None:
        """Download model with id `id` from server: its bytes, positioned at the start; None if there is none.

        The whole model is in memory then.
        """
        return self._thread.call(self._read(id))

    def set_model(self, model: BinaryIO | ModelStream, id: str) -> None:
        """Upload model to server. It is durable on return; an id that is complete keeps its first bytes.

        Args:
            model: a file-like object, read from its start, or one with `stream(n)`. It is read in a thread,
                piece by piece: no whole model is in memory.
            id: 1 to 128 letters, digits, '.', '_' and '-', the first a letter or digit.

        Raises:
            InvalidArgument: the id is none, or the model is larger than the limit.
        """
        self._thread.call(self._write(ObjectKey("uploads", id), _pieces(model)))

    async def _read(self, model_id: str) -> io.BytesIO | None:
        info = await self.find(model_id)
        if info is None:
            return None
        try:
            return await self._retried(partial(self._read_whole, info.key))
        except ObjectNotFound:  # removed meanwhile
            return None

    async def _read_whole(self, key: ObjectKey) -> io.BytesIO:
        content = io.BytesIO()
        async with aclosing(self._store.reader(key)) as chunks:
            async for chunk in chunks:
                content.write(chunk)
        content.seek(0)
        return content

    async def _write(self, key: ObjectKey, pieces: Iterator[bytes]) -> None:
        async with AsyncExitStack() as stack:
            writer = await self._retried(partial(self._writer, stack, key))
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                await writer.write(piece)
            await writer.commit()


def _pieces(model: BinaryIO | ModelStream) -> Iterator[bytes]:
    if isinstance(model, ModelStream):
        yield from model.stream(CHUNK_SIZE)
        return
    if model.seekable():
        model.seek(0, os.SEEK_SET)
    while piece := model.read(CHUNK_SIZE):
        yield piece
