"""The MinIO store when requests fail, answers get lost and connections break."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fedcombiner.modelstorage.minio import MinioStore
from fedcombiner.modelstorage.s3 import http, multipart
from fedcombiner.modelstorage.s3.bucket import S3Bucket
from fedcombiner.modelstorage.s3.errors import StoreRefused
from fedcombiner.modelstorage.store import (
    ObjectDamaged,
    ObjectKey,
    ObjectNotFound,
    StoreFull,
    StoreUnavailable,
)
from fedcombiner.wire.chunks import CHUNK_SIZE
from tests.contract.s3_kit import Place, new_place
from tests.contract.s3_proxy import Asked, Proxy, Trouble, proxy_to
from tests.contract.store_kit import KEY, LIMIT, get, ids, pattern, put

MODEL = ObjectKey("models", "m1")
DATA = pattern(20 * CHUNK_SIZE + 1)


@pytest.fixture
def place(moto: str) -> Place:
    return new_place(moto)


@pytest.fixture
def proxy(place: Place) -> Iterator[Proxy]:
    with proxy_to(place.location.url) as proxy:
        yield proxy


@asynccontextmanager
async def opened(
    place: Place, proxy: Proxy, scratch: Path, patience: float = 20.0
) -> AsyncIterator[MinioStore]:
    store = MinioStore(replace(place.location, url=proxy.url), scratch, patience=patience)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


@pytest.mark.parametrize("trouble", ["lose", "cut", (503, "SlowDown")])
async def test_everything_works_although_each_request_fails_at_first(
    place: Place, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Trouble
) -> None:
    monkeypatch.setattr(multipart, "_COPIED_PART_BYTES", 8 << 20)
    async with opened(place, proxy, tmp_path) as store:
        proxy.script = lambda asked: None if asked.again else trouble
        info = await put(store, KEY, DATA)
        small = await put(store, ObjectKey("uploads", "small"), b"small")
        assert await put(store, KEY, b"later") == info
        copied = await store.copy(KEY, MODEL)
        assert (copied.size, copied.sha256) == (info.size, info.sha256)
        assert await get(store, KEY) == DATA
        assert await get(store, small.key) == b"small"
        async with store.local_file(MODEL) as path:
            assert path.read_bytes() == DATA
        assert await ids(store) == ["small", KEY.id]
        for key in (KEY, small.key, MODEL):
            assert await store.delete(key) is True
    assert [name for name in place.stored() if not name.startswith("unfinished")] == []
    # An answer that is lost may be the one that names an upload: only a lifecycle rule can find that.
    assert len(place.unfinished()) <= (3 if trouble in ("lose", "cut") else 0)


async def test_a_download_goes_on_where_it_broke(place: Place, proxy: Proxy, tmp_path: Path) -> None:
    async with opened(place, proxy, tmp_path) as store:
        await put(store, KEY, DATA)
        proxy.asked.clear()
        proxy.script = lambda asked: "cut" if "/data/" in asked.path and asked.again < 5 else None
        assert await get(store, KEY) == DATA
        assert len([asked for asked in proxy.asked if "/data/" in asked.path]) == 6


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (507, "XMinioStorageFull", "no space left"),
        (400, "XMinioAdminBucketQuotaExceeded", "quota of bucket"),
    ],
)
@pytest.mark.parametrize("where", ["data", "records"])
@pytest.mark.parametrize("size", [10, 20 * CHUNK_SIZE])
async def test_a_full_store_says_so_and_keeps_nothing(
    place: Place,
    proxy: Proxy,
    tmp_path: Path,
    status: int,
    code: str,
    expected: str,
    where: str,
    size: int,
) -> None:
    async with opened(place, proxy, tmp_path) as store:
        proxy.script = lambda asked: (
            (status, code) if asked.method == "PUT" and f"/{where}/" in asked.path else None
        )
        with pytest.raises(StoreFull, match=expected):
            await put(store, KEY, DATA[:size])
        assert await store.head(KEY) is None
        assert place.stored() == []
        proxy.script = lambda _asked: None
        await put(store, KEY, DATA[:size])
        assert await get(store, KEY) == DATA[:size]


async def test_a_refusal_is_not_tried_again(place: Place, proxy: Proxy, tmp_path: Path) -> None:
    async with opened(place, proxy, tmp_path) as store:
        proxy.asked.clear()
        proxy.script = lambda _asked: (403, "AccessDenied")
        with pytest.raises(StoreRefused, match="no right"):
            await store.head(KEY)
        with pytest.raises(StoreRefused):
            await store.ping()
        assert len(proxy.asked) == 2


async def test_a_commit_of_unknown_end_is_whole_or_not_at_all(
    place: Place, proxy: Proxy, tmp_path: Path
) -> None:
    """The answer to the one request that commits is lost, and the server is away from then on."""
    async with opened(place, proxy, tmp_path, patience=0) as store:
        gone: list[Asked] = []

        def script(asked: Asked) -> Trouble:
            if asked.method == "PUT" and "/records/" in asked.path:
                gone.append(asked)
                return "lose"
            return (503, "SlowDown") if gone else None

        proxy.script = script
        with pytest.raises(StoreUnavailable):
            await put(store, KEY, DATA)
        proxy.script = lambda _asked: None
        assert await get(store, KEY) == DATA
        assert (await put(store, KEY, b"again")).size == len(DATA)
        assert len(place.stored()) == 2


async def test_a_server_without_conditions_still_keeps_the_first(
    place: Place, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.script = lambda asked: (501, "NotImplemented") if asked.conditional else None
    async with opened(place, proxy, tmp_path) as store:
        first = await put(store, KEY, b"first")
        assert await put(store, KEY, b"second") == first
        assert await get(store, KEY) == b"first"
        assert len(place.stored()) == 2


async def test_a_writer_is_slowed_down_by_the_server(place: Place, proxy: Proxy, tmp_path: Path) -> None:
    """With a server that takes nothing, a writer takes no more than its few parts."""
    release = threading.Event()
    async with opened(place, proxy, tmp_path) as store, store.writer(KEY, max_bytes=LIMIT) as writer:
        proxy.script = lambda asked: release if asked.method == "PUT" else None
        taken = 0

        async def write_on() -> None:
            nonlocal taken
            for _ in range(50):
                await writer.write(bytes(CHUNK_SIZE))
                taken += 1

        task = asyncio.create_task(write_on())
        done, _ = await asyncio.wait((task,), timeout=0.5)
        assert not done
        assert taken <= 26
        release.set()
        await task
        assert (await writer.commit()).size == 50 * CHUNK_SIZE


async def test_a_write_that_is_cancelled_may_be_followed_by_others(
    place: Place, proxy: Proxy, tmp_path: Path
) -> None:
    release = threading.Event()
    async with opened(place, proxy, tmp_path) as store, store.writer(KEY, max_bytes=LIMIT) as writer:
        proxy.script = lambda asked: release if asked.method == "PUT" else None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await writer.write(DATA + DATA)
        release.set()
        await writer.write(b"end")
        await writer.commit()
        assert await get(store, KEY) == DATA + DATA + b"end"


async def test_a_server_that_falls_silent_is_given_up(
    place: Place, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "SILENCE_S", 0.3)
    silent = threading.Event()
    async with opened(place, proxy, tmp_path, patience=0) as store:
        proxy.script = lambda _asked: silent
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await store.ping()
        silent.set()
        proxy.script = lambda _asked: None
        await store.ping()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("data", b"DAMAGED!", "sha256"),
        ("data", b"short", "another size"),
        ("records", b'{"size": 1', "damaged"),
        ("records", b'{"version": 1, "size": "x"}', "damaged"),
    ],
)
async def test_damage_is_seen(
    place: Place, proxy: Proxy, tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    async with opened(place, proxy, tmp_path, patience=0) as store:
        await put(store, KEY, b"8 bytes.")
        (stored,) = [stored for stored in place.stored() if f"/{name}/" in stored]
        place.overwrite(stored, content)
        with pytest.raises(ObjectDamaged, match=expected):
            async with store.local_file(KEY):
                pass
        assert await ids(store) == ([] if name == "records" else [KEY.id])


async def test_data_that_is_gone_is_not_there(place: Place, proxy: Proxy, tmp_path: Path) -> None:
    async with opened(place, proxy, tmp_path) as store:
        await put(store, KEY, DATA)
        (data,) = [stored for stored in place.stored() if "/data/" in stored]
        place.client.remove_object(place.location.bucket, data)
        with pytest.raises(ObjectNotFound):
            await get(store, KEY)


async def test_a_missing_bucket_says_what_to_do(place: Place, proxy: Proxy, tmp_path: Path) -> None:
    store = place.store(tmp_path, bucket="no-such-bucket")
    with pytest.raises(StoreRefused, match="'no-such-bucket' does not exist: run `combiner storage setup`"):
        await store.start()
    place.client.make_bucket("no-such-bucket")
    await store.start()
    await put(store, KEY, b"x")
    await store.close()


async def test_a_deletion_that_fails_unexpectedly_answers_its_caller(
    place: Place, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_bucket: S3Bucket, _name: str, **_options: object) -> None:
        raise ZeroDivisionError

    async with opened(place, proxy, tmp_path) as store:
        await put(store, KEY, b"data")
        with monkeypatch.context() as patch:
            patch.setattr(S3Bucket, "remove", broken)
            with pytest.raises(ZeroDivisionError):
                await asyncio.wait_for(store.delete(KEY), 20)
        assert await store.delete(KEY) is True


async def test_a_server_that_is_not_there_is_unavailable(place: Place, proxy: Proxy, tmp_path: Path) -> None:
    store = place.store(tmp_path, patience=0, url="http://127.0.0.1:1")
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await store.start()
    await store.close()
