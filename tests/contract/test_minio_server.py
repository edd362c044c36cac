"""The MinIO store on a real MinIO: when that is killed, refuses and has no room; and what a process needs."""

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider

from fedcombiner.modelstorage.minio import MinioStore
from fedcombiner.modelstorage.s3.errors import StoreRefused
from fedcombiner.modelstorage.store import StoreFull, StoreUnavailable
from fedcombiner.wire.chunks import CHUNK_SIZE
from tests.contract.s3_kit import ROOT_SECRET, ROOT_USER, MinioServer, Place, new_place
from tests.contract.store_kit import KEY, LIMIT, get, pattern, put

DATA = pattern(40 * CHUNK_SIZE + 7)


@asynccontextmanager
async def opened(place: Place, scratch: Path, patience: float) -> AsyncIterator[MinioStore]:
    store = place.store(scratch, patience=patience)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def killed(minio: str) -> Iterator[MinioServer]:
    """A MinIO that a test may kill; skipped where the shared one is."""
    server = MinioServer()
    server.start()
    yield server
    server.close()


async def test_an_upload_outlives_a_restart_of_the_server(killed: MinioServer, tmp_path: Path) -> None:
    place = new_place(killed.url)
    async with opened(place, tmp_path, 30.0) as store, store.writer(KEY, max_bytes=LIMIT) as writer:
        await writer.write(DATA[: 17 * CHUNK_SIZE])
        killed.kill()
        rest = asyncio.create_task(writer.write(DATA[17 * CHUNK_SIZE :]))
        await asyncio.wait((rest,), timeout=0.2)
        await asyncio.to_thread(killed.start)
        await rest
        await writer.commit()
        assert await get(store, KEY) == DATA


async def test_of_an_upload_that_the_server_ended_nothing_is_seen(
    killed: MinioServer, tmp_path: Path
) -> None:
    place = new_place(killed.url)
    async with opened(place, tmp_path, 0.0) as store:

        async def upload() -> None:
            async with store.writer(KEY, max_bytes=LIMIT) as writer:
                await writer.write(DATA[: 17 * CHUNK_SIZE])
                killed.kill()
                await writer.write(DATA[17 * CHUNK_SIZE :])
                await writer.commit()

        with pytest.raises(StoreUnavailable):
            await upload()
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            await store.ping()
        await asyncio.to_thread(killed.start)
        assert await store.head(KEY) is None
        assert place.stored() == []
        await put(store, KEY, DATA)
        assert await get(store, KEY) == DATA


async def test_a_download_outlives_a_restart_of_the_server(killed: MinioServer, tmp_path: Path) -> None:
    async with opened(new_place(killed.url), tmp_path, 30.0) as store:
        await put(store, KEY, DATA)
        async with aclosing(store.reader(KEY)) as chunks:
            read = [await anext(chunks)]
            killed.kill()
            await asyncio.to_thread(killed.start)
            read += [chunk async for chunk in chunks]
        assert b"".join(read) == DATA


async def test_a_quota_that_is_used_up_is_a_full_store(minio: str, tmp_path: Path) -> None:
    place = new_place(minio)
    admin = MinioAdmin(
        endpoint=minio.removeprefix("http://"),
        credentials=StaticProvider(ROOT_USER, ROOT_SECRET),
        secure=False,
    )
    admin.bucket_quota_set(place.location.bucket, 4 << 20)
    async with opened(place, tmp_path, 5.0) as store:
        for size in (5 << 20, 20 << 20):
            with pytest.raises(StoreFull, match="quota of bucket"):
                await put(store, KEY, DATA[:size])
            assert place.stored() == []
        await put(store, KEY, DATA[: 1 << 20])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"access_key": "nobody"}, "does not know MINIO_ACCESS_KEY"),
        ({"secret_key": "wrong-secret"}, "MINIO_SECRET_KEY is not the secret"),
        ({"bucket": "no-such-bucket"}, "'no-such-bucket' does not exist"),
    ],
)
async def test_a_wrong_key_or_bucket_says_what_to_do(
    minio: str, tmp_path: Path, changes: dict[str, str], expected: str
) -> None:
    store = new_place(minio).store(tmp_path, **changes)
    with pytest.raises(StoreRefused, match=expected) as caught:
        await store.start()
    assert "combiner storage setup" in str(caught.value)
    assert "wrong-secret" not in str(caught.value)
    await store.close()


CHILD = """
import asyncio, hashlib, json, sys
from contextlib import aclosing
from pathlib import Path
from fedcombiner.modelstorage.minio import MinioStore
from fedcombiner.modelstorage.s3.bucket import S3Location
from fedcombiner.modelstorage.store import ObjectKey

CHUNK = 1 << 20

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))

async def write(store, key, chunks):
    async with store.writer(key, max_bytes=1 << 31) as writer:
        for number in range(chunks):
            await writer.write(number.to_bytes(4, "big") * (CHUNK // 4))
        return (await writer.commit()).sha256

async def read(store, key, chunks):
    digest = hashlib.sha256()
    async with aclosing(store.reader(key)) as data:
        async for chunk in data:
            digest.update(chunk)
    return digest.hexdigest()

async def local_file(store, key, chunks):
    async with store.local_file(key) as path:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

async def main():
    work, chunks = globals()[sys.argv[6]], int(sys.argv[7])
    store = MinioStore(S3Location(*sys.argv[1:5]), Path(sys.argv[5]))
    await store.start()
    await write(store, ObjectKey("uploads", "warm"), 1)
    await work(store, ObjectKey("uploads", "warm"), 1)
    before = peak()
    sha256 = await work(store, ObjectKey("uploads", "large"), chunks)
    print(json.dumps({"sha256": sha256, "above": peak() - before}))
    await store.close()

asyncio.run(main())
"""


async def test_memory_is_some_parts_whatever_the_size(minio: str, tmp_path: Path) -> None:
    location = new_place(minio).location
    arguments = (location.url, location.bucket, location.access_key, location.secret_key, str(tmp_path))
    expected = hashlib.sha256()
    for number in range(300):
        expected.update(number.to_bytes(4, "big") * (CHUNK_SIZE // 4))
    for work, limit in (("write", 32 << 20), ("read", 24 << 20), ("local_file", 24 << 20)):
        child = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", CHILD, *arguments, work, "300"],
            capture_output=True,
            check=True,
            timeout=100,
        )
        said = json.loads(child.stdout)
        assert said["sha256"] == expected.hexdigest()
        assert said["above"] <= limit, (work, said)
