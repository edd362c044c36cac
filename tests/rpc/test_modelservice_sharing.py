"""How transfers share a ModelService with slow and silent peers, with many that wait, with greedy clients."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from fedcombiner.modelstorage import lanes, transfer
from fedcombiner.modelstorage.disk import DiskStore
from fedcombiner.modelstorage.diskwriter import DiskWriter
from fedcombiner.modelstorage.store import Buffer, ObjectInfo, ObjectKey
from fedcombiner.wire.chunks import CHUNK_SIZE, encode_request
from fedcombiner.wire.pb.fedn_pb2 import OK, ModelResponse
from tests.rpc.modelservice_kit import DEADLINE, Service, chunk, eventually, messages_of, put, serve, started

MODEL = ObjectKey("models", "large")
PLACES = 16
BEGUN = b"x" * (64 << 10)


class GatedStore(DiskStore):
    """A disk store whose writers and readers wait at a gate, as those of a slow disk do."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gate, self.commits = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.commits.set()

    @asynccontextmanager
    async def writer(self, key: ObjectKey, *, max_bytes: int) -> AsyncIterator[DiskWriter]:  # type: ignore[override]
        async with super().writer(key, max_bytes=max_bytes) as writer:
            yield _GatedWriter(writer, self.gate, self.commits)  # type: ignore[misc]


class _GatedWriter:
    def __init__(self, writer: DiskWriter, gate: asyncio.Event, commits: asyncio.Event) -> None:
        self._writer = writer
        self._gate = gate
        self._commits = commits

    async def write(self, data: Buffer) -> None:
        if data:
            await self._gate.wait()
        await self._writer.write(data)

    async def commit(self) -> ObjectInfo:
        await self._commits.wait()
        return await self._writer.commit()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[GatedStore]:
    async with started(GatedStore(tmp_path)) as store:
        assert isinstance(store, GatedStore)
        yield store


async def beginning(
    service: Service, model_id: str, data: bytes
) -> grpc.aio.StreamUnaryCall[bytes, ModelResponse]:
    """An upload that has sent this and keeps silent."""
    call = service.open_upload()
    await call.write(chunk(data, model_id))
    return call


async def finish(call: grpc.aio.StreamUnaryCall[bytes, ModelResponse], model_id: str) -> ModelResponse:
    await call.write(encode_request(model_id, OK))
    await call.done_writing()
    return await call


async def honest(service: Service, model_id: str = "honest") -> None:
    data = bytes(3 * CHUNK_SIZE)
    await service.upload(*messages_of(data, model_id))
    assert await service.content(model_id) == data


# ---- slow peers ----


async def test_silent_uploads_hold_nobody_up(store: GatedStore) -> None:
    async with serve(store, max_transfers=PLACES) as service:
        silent = [service.open_upload() for _ in range(PLACES)]
        await eventually(lambda: service.servicer.uploads.under_way == PLACES, "all uploads to begin")
        await honest(service)
        assert not any(call.done() for call in silent)
        assert service.events == []


@pytest.mark.parametrize("data", [b"", b"x"], ids=["nothing", "a-byte"])
async def test_uploads_that_trickle_hold_nobody_up(store: GatedStore, data: bytes) -> None:
    async with serve(store, max_transfers=PLACES) as service:
        calls = [await beginning(service, f"u{number}", data) for number in range(PLACES)]
        await eventually(lambda: len(service.received) == PLACES, "a message of each upload")
        await honest(service)
        assert not any(call.done() for call in calls)
        assert service.events == []


async def test_any_number_of_silent_uploads_leaves_a_place(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "_SPARED_S", 0.5)
    async with serve(store, max_transfers=2, max_slow_transfers=2, max_waiting_transfers=500) as service:
        silent = [service.open_upload() for _ in range(20)]
        await eventually(lambda: ("in", "cut") in service.events, "a silent upload to be cut off")
        await honest(service)
        for call in silent:
            if call.done():
                assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def test_uploads_that_stop_on_the_way_hold_nobody_up_and_can_go_on(store: GatedStore) -> None:
    async with serve(store, max_transfers=PLACES) as service:
        calls = [await beginning(service, f"u{number}", BEGUN) for number in range(PLACES)]
        await eventually(lambda: len(service.received) == PLACES, "a message of each upload")
        await honest(service)
        assert set(service.events) == {("in", "slowed")}
        replies = [await finish(call, f"u{number}") for number, call in enumerate(calls)]
        assert [reply.status for reply in replies] == [OK] * PLACES
        assert await service.content("u0") == BEGUN
        assert service.servicer.uploads.under_way == service.servicer.uploads.slow == 0


async def test_readers_that_stop_hold_nobody_up(store: GatedStore) -> None:
    await put(store, MODEL, bytes(64 * CHUNK_SIZE))
    async with serve(store, max_transfers=PLACES) as service, AsyncExitStack() as stack:
        for _ in range(PLACES):
            # A connection each: a reader that stops blocks the connection of the others here, too.
            reader = await stack.enter_async_context(another_channel(service))
            assert (await reader.open_download("large").read()).data  # type: ignore[union-attr]
        await honest(service)


@asynccontextmanager
async def another_channel(service: Service, window: int = 4 * CHUNK_SIZE) -> AsyncIterator[Service]:
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        # Otherwise a client on a fast network lets its window grow until it takes a whole model unread.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", window),
    ]
    async with grpc.aio.insecure_channel(service.address, options=options) as channel:
        yield Service(channel, service.store, service.servicer, service.address)


@pytest.mark.parametrize("window", [65_535, 4 * CHUNK_SIZE], ids=["not-a-chunk", "some-chunks"])
async def test_downloads_that_nobody_reads_are_not_kept(store: GatedStore, window: int) -> None:
    await put(store, MODEL, bytes(16 * CHUNK_SIZE))
    async with (
        serve(store, max_transfers=4, max_slow_transfers=2, idle_timeout=0.3) as service,
        another_channel(service, window) as deaf,
    ):
        calls = [deaf.open_download("large") for _ in range(12)]
        # Unread, an error would arrive behind the data, so never; it comes with the end of the connection.
        # Two may stay: those that arrive after that connection was closed are too few to close another.
        await eventually(lambda: sum(call.done() for call in calls) >= 10, "all but two downloads to end")
        codes = [await call.code() for call in calls if call.done()]
        assert set(codes) == {grpc.StatusCode.UNAVAILABLE}
        assert ("out", "disconnected") in service.events
        await honest(service)


async def test_the_slowest_is_cut_when_the_slow_lane_is_full(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "_SPARED_S", 0.5)
    async with serve(store, max_transfers=1, max_slow_transfers=1) as service:
        first = await beginning(service, "first", BEGUN)
        await eventually(lambda: len(service.received) == 1, "the first upload")
        second = await beginning(service, "second", BEGUN * 8)
        await eventually(lambda: ("in", "slowed") in service.events, "the first upload to be slow")
        await honest(service)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await first
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "too slow while others wait" in (caught.value.details() or "")
        assert (await finish(second, "second")).status == OK
        assert service.events == [("in", "slowed"), ("in", "cut"), ("in", "slowed")]


async def test_a_slow_upload_is_left_alone_while_nobody_waits(store: GatedStore) -> None:
    async with serve(store, max_transfers=1, min_rate=1 << 30) as service:
        call = await beginning(service, "slow", BEGUN)
        for number in range(3):
            await eventually(lambda number=number: len(service.received) > number, "a chunk")  # type: ignore[misc]
            await call.write(chunk(BEGUN, "slow"))
        assert (await finish(call, "slow")).status == OK
        assert service.events == []


async def test_an_upload_that_the_store_is_slow_to_complete_is_not_slow(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STALL_S", "GRACE_S"):
        monkeypatch.setattr(transfer, name, 0.0)  # any peer that is waited for is slow
    store.commits.clear()
    async with serve(store, max_transfers=1) as service:
        first = await beginning(service, "first", BEGUN)
        await first.write(encode_request("first", OK))
        await first.done_writing()
        await eventually(lambda: len(service.received) == 2, "the end of the first upload")
        second = await beginning(service, "second", BEGUN)
        await eventually(lambda: len(service.received) == 3, "the second upload to wait for a slot")
        assert service.events == []
        store.commits.set()
        assert (await first).status == OK
        assert (await finish(second, "second")).status == OK


async def test_messages_without_data_are_no_progress(store: GatedStore) -> None:
    async def without_end() -> AsyncIterator[bytes]:
        yield chunk(BEGUN)
        while True:
            yield chunk(b"")

    async with serve(store, idle_timeout=0.3) as service:
        call = service.channel.stream_unary("/grpc.ModelService/Upload")(without_end(), timeout=DEADLINE)
        await eventually(lambda: len(service.received) > 2, "messages without data")
        await eventually(lambda: service.servicer.uploads.under_way == 0, "the upload to be given up")
        assert await store.head(ObjectKey("uploads", "m1")) is None
        call.cancel()


# ---- many at once ----


async def test_uploads_that_wait_are_not_read(store: GatedStore) -> None:
    store.gate.clear()
    async with serve(store, max_transfers=2) as service:
        uploads = [
            asyncio.create_task(service.upload(*messages_of(bytes(2 * CHUNK_SIZE), f"u{number}")))
            for number in range(40)
        ]
        traffic = service.servicer.uploads
        await eventually(lambda: traffic.waiting == 40 - 2 - 2 * 2, "all uploads to come")
        await eventually(lambda: len(service.received) == 2 + 2 * 2, "the first chunks")
        assert sum(service.received) == (2 + 2 * 2) * CHUNK_SIZE
        store.gate.set()
        assert {reply.status for reply in await asyncio.gather(*uploads)} == {OK}
        assert traffic.waiting == traffic.under_way == 0


async def test_an_upload_without_bytes_is_answered_while_all_places_are_taken(store: GatedStore) -> None:
    store.gate.clear()
    async with serve(store, max_transfers=1) as service:
        running = asyncio.create_task(service.upload(*messages_of(b"model", "model")))
        await eventually(lambda: sum(service.received) == 5, "the upload that takes the place")
        assert (await service.upload(encode_request("empty", OK))).status == OK
        assert not running.done()
        store.gate.set()
        assert (await running).status == OK


async def test_uploads_and_downloads_do_not_wait_for_each_other(store: GatedStore) -> None:
    await put(store, MODEL, b"model")
    store.gate.clear()
    async with serve(store, max_transfers=1) as service:
        upload = asyncio.create_task(service.upload(*messages_of(b"model", "model")))
        await eventually(lambda: sum(service.received) == 5, "the upload that takes the place")
        assert await service.content("large") == b"model"
        store.gate.set()
        await upload


async def test_more_than_may_wait_are_unavailable(store: GatedStore) -> None:
    store.gate.clear()
    async with serve(store, max_transfers=1, max_waiting_transfers=2) as service:
        uploads = []
        for number in range(5):
            uploads.append(asyncio.create_task(service.upload(*messages_of(BEGUN, f"u{number}"))))
            read = min(number + 1, 3)
            await eventually(lambda read=read: len(service.received) == read, f"{read} first chunks")  # type: ignore[misc]
        await eventually(lambda: service.servicer.uploads.waiting == 2, "two uploads to wait")
        late = service.open_upload()
        assert await late.code() is grpc.StatusCode.UNAVAILABLE
        assert await late.details() == "too many transfers are waiting; try again"
        assert service.events == [("in", "refused")]
        store.gate.set()
        assert {reply.status for reply in await asyncio.gather(*uploads)} == {OK}


# ---- greedy clients ----


async def test_a_client_with_many_transfers_lets_others_go_first(store: GatedStore) -> None:
    store.gate.clear()
    async with serve(store, max_transfers=2, address="[::]:0") as service:
        greedy = [
            asyncio.create_task(service.upload(*messages_of(bytes(9 * CHUNK_SIZE), f"g{number}")))
            for number in range(8)
        ]
        await eventually(lambda: service.servicer.uploads.waiting == 2, "the greedy client's uploads to wait")
        port = service.address.rpartition(":")[2]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            other = Service(channel, store, service.servicer, service.address)
            modest = asyncio.create_task(other.upload(*messages_of(bytes(2 * CHUNK_SIZE), "modest")))
            await eventually(
                lambda: service.servicer.uploads.waiting == 3, "the other client's upload to wait"
            )
            store.gate.set()
            await modest
            assert not all(upload.done() for upload in greedy[2:])
            assert {reply.status for reply in await asyncio.gather(*greedy)} == {OK}
