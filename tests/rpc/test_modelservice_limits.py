"""ModelService when peers are slow, when many come at once, and when the store is away."""

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from fedcombiner.modelstorage.disk import DiskStore
from fedcombiner.modelstorage.diskwriter import DiskWriter
from fedcombiner.modelstorage.store import ObjectInfo, ObjectKey, ObjectNotFound, StoreFull, StoreUnavailable
from fedcombiner.wire.chunks import CHUNK_SIZE
from fedcombiner.wire.pb.fedn_pb2 import ModelResponse
from tests.rpc.modelservice_kit import (
    Service,
    chunk,
    data_of,
    messages_of,
    put,
    serve,
    started,
)

MODEL = ObjectKey("models", "m1")
UPLOAD = ObjectKey("uploads", "m1")


class WeakStore(DiskStore):
    """A disk store that is away for the next `away` calls, and breaks after the chunks in `break_at`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.away = 0
        self.break_at: list[int] = []
        self.offsets: list[int] = []
        self.chunks_read = 0
        self.full = False

    def _fail(self) -> None:
        if self.away > 0:
            self.away -= 1
            raise StoreUnavailable("the store is away")

    async def head(self, key: ObjectKey) -> ObjectInfo | None:
        self._fail()
        return await super().head(key)

    def writer(self, key: ObjectKey, *, max_bytes: int) -> AbstractAsyncContextManager[DiskWriter]:
        self._fail()
        if self.full:
            raise StoreFull("no space is left in the model store")
        return super().writer(key, max_bytes=max_bytes)

    async def reader(self, key: ObjectKey, offset: int = 0) -> AsyncGenerator[bytes, None]:
        self._fail()
        self.offsets.append(offset)
        async for data in super().reader(key, offset):
            yield data
            self.chunks_read += 1
            if self.chunks_read in self.break_at:
                raise StoreUnavailable("the store broke")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[WeakStore]:
    async with started(WeakStore(tmp_path)) as store:
        assert isinstance(store, WeakStore)
        yield store


async def error_of(call: grpc.aio.Call) -> tuple[grpc.StatusCode, str]:
    return await call.code(), await call.details() or ""


# ---- slow peers ----


async def test_a_slow_reader_is_not_read_ahead_for(store: WeakStore) -> None:
    await put(store, MODEL, bytes(100 * CHUNK_SIZE))
    async with serve(store, max_transfers=1, idle_timeout=0.5) as service:
        call = service.open_download("m1")
        assert len((await call.read()).data) == CHUNK_SIZE
        # The server gives up on the reader; until then it has put in all that it will.
        other = service.download("nothing")
        await asyncio.wait_for(other, 10)
        # HTTP/2 windows, socket buffers, the client's own read-ahead, and the two batches of the store.
        assert store.chunks_read < 30
        while isinstance(message := await next_of(call), ModelResponse):
            assert message.data
        assert await error_of(call) == (grpc.StatusCode.UNAVAILABLE, "no progress for 0.5 s")


async def next_of(call: grpc.aio.UnaryStreamCall[bytes, ModelResponse]) -> object:
    try:
        return await call.read()
    except grpc.aio.AioRpcError as error:
        return error


async def test_a_silent_uploader_is_cut_off(store: WeakStore, tmp_path: Path) -> None:
    async with serve(store, max_transfers=1, idle_timeout=0.3) as service:
        call = service.open_upload()
        await call.write(chunk(b"x"))
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        assert await error_of(call) == (grpc.StatusCode.UNAVAILABLE, "no progress for 0.3 s")
        await service.upload(*messages_of(b"whole"))
        assert len(list(tmp_path.rglob("data"))) == 1


# ---- many at once ----


async def begin(service: Service, model_id: str) -> grpc.aio.StreamUnaryCall[bytes, ModelResponse]:
    call = service.open_upload()
    await call.write(chunk(b"x", model_id))
    return call


async def test_a_transfer_that_ends_badly_gives_its_place_back(store: WeakStore) -> None:
    async with serve(store, max_transfers=1) as service:
        for _ in range(3):
            await service.refusal(chunk(b"x", "../x"))
            await service.refusal(chunk(b"x"))
            call = await begin(service, "m1")
            call.cancel()
        await service.upload(*messages_of(b"whole"))
        assert await service.content("m1") == b"whole"


# ---- a store that is away ----


async def test_an_upload_waits_for_the_store(store: WeakStore) -> None:
    async with serve(store) as service:
        store.away = 3
        await service.upload(*messages_of(b"data"))
        assert store.away == 0
        assert await service.content("m1") == b"data"


async def test_a_download_waits_for_the_store(store: WeakStore) -> None:
    await put(store, MODEL, b"data")
    async with serve(store) as service:
        store.away = 3
        assert await service.content("m1") == b"data"


async def test_a_store_that_stays_away_is_unavailable(store: WeakStore, tmp_path: Path) -> None:
    async with serve(store, store_timeout=0.2) as service:
        store.away = 1000
        error = await service.refusal(*messages_of(b"data"))
        assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "the store is away")
        call = service.open_download("m1")
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
        assert await error_of(call) == (grpc.StatusCode.UNAVAILABLE, "the store is away")
    assert list(tmp_path.rglob("data")) == []


async def test_a_full_store_is_unavailable_at_once(store: WeakStore) -> None:
    async with serve(store, store_timeout=1000) as service:
        store.full = True
        error = await service.refusal(*messages_of(b"data"))
        assert (error.code(), error.details()) == (
            grpc.StatusCode.UNAVAILABLE,
            "no space is left in the model store",
        )


async def test_a_download_goes_on_where_the_store_broke(store: WeakStore) -> None:
    data = data_of(9 * CHUNK_SIZE)[: 9 * CHUNK_SIZE]
    await put(store, MODEL, data)
    async with serve(store) as service:
        store.break_at = [2, 5]
        assert await service.content("m1") == data
    assert store.offsets == [0, 2 * CHUNK_SIZE, 5 * CHUNK_SIZE]


async def test_a_download_that_cannot_go_on_never_ends_cleanly(store: WeakStore) -> None:
    await put(store, MODEL, bytes(9 * CHUNK_SIZE))
    async with serve(store, store_timeout=0.2) as service:
        store.break_at = list(range(2, 1000))
        received = 0
        call = service.open_download("m1")
        while isinstance(message := await next_of(call), ModelResponse):
            received += len(message.data)
            if received == 2 * CHUNK_SIZE:
                store.away = 1000
        assert received < 9 * CHUNK_SIZE
        assert (await error_of(call))[0] is grpc.StatusCode.UNAVAILABLE


async def test_a_model_that_is_removed_while_the_store_is_away(store: WeakStore) -> None:
    await put(store, MODEL, bytes(30 * CHUNK_SIZE))
    async with serve(store) as service:
        store.break_at = [30]
        call = service.open_download("m1")
        await call.read()
        await store.delete(MODEL)
        while isinstance(await next_of(call), ModelResponse):
            pass
        code, details = await error_of(call)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "models/m1 was removed" in details


class Vanishing(WeakStore):
    """A store whose models vanish after their second chunk."""

    async def reader(self, key: ObjectKey, offset: int = 0) -> AsyncGenerator[bytes, None]:
        async for data in super().reader(key, offset):
            yield data
            if key.kind == "models" and self.chunks_read == 2:
                raise ObjectNotFound(key)


async def test_a_download_never_goes_on_with_another_object(tmp_path: Path) -> None:
    async with started(Vanishing(tmp_path)) as store:
        await put(store, MODEL, b"a" * 5 * CHUNK_SIZE)
        await put(store, UPLOAD, b"b" * 5 * CHUNK_SIZE)
        async with serve(store) as service:
            call = service.open_download("m1")
            received = set()
            while isinstance(message := await next_of(call), ModelResponse):
                received |= set(message.data)
            assert received == set(b"a")
            assert await error_of(call) == (
                grpc.StatusCode.UNAVAILABLE,
                "models/m1 was removed while it was sent",
            )


async def test_readers_are_closed_when_their_peers_leave(store: WeakStore) -> None:
    await put(store, MODEL, bytes(50 * CHUNK_SIZE))
    async with serve(store, max_transfers=1) as service:
        for _ in range(3):
            call = service.open_download("m1")
            await call.read()
            call.cancel()
        assert len(await service.content("m1")) == 50 * CHUNK_SIZE
    gc.collect()
    await store.delete(MODEL)
    with pytest.raises(ObjectNotFound):
        await anext(store.reader(MODEL))
