"""What every adapter of the `ModelStore` port promises; below it, what only the disk adapter can be asked."""

import asyncio
import errno
import hashlib
import os
import resource
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedcombiner.modelstorage import diskfiles
from fedcombiner.modelstorage.disk import DiskStore
from fedcombiner.modelstorage.store import (
    ModelStore,
    ObjectDamaged,
    ObjectKey,
    ObjectNotFound,
    ObjectTooLarge,
    StoreFull,
    StoreUnavailable,
    parse_id,
)
from fedcombiner.servicekit.errors import InvalidArgument
from fedcombiner.wire.chunks import CHUNK_SIZE
from tests.contract.s3_kit import new_place
from tests.contract.store_kit import KEY, LIMIT, Home, files_under, get, ids, pattern, put, until


@pytest.fixture(params=["disk", "moto", "minio"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    root = tmp_path / "a root"
    if request.param == "disk":
        return Home(lambda: DiskStore(root), lambda: [str(path) for path in files_under(root)])
    place = new_place(request.getfixturevalue(request.param))
    return place.home(root)


@pytest.fixture
async def store(home: Home) -> AsyncIterator[ModelStore]:
    store = home.make()
    await store.start()
    yield store
    await store.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@asynccontextmanager
async def disk_store(root: Path) -> AsyncIterator[DiskStore]:
    store = DiskStore(root)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


@pytest.mark.parametrize("size", [0, 1, CHUNK_SIZE, CHUNK_SIZE + 1, 5 * CHUNK_SIZE + 17])
async def test_gives_back_what_was_written(store: ModelStore, size: int) -> None:
    data = pattern(size)
    before = datetime.now(UTC)
    written = await put(store, KEY, data)
    assert (written.key, written.size) == (KEY, size)
    assert written.sha256 == hashlib.sha256(data).hexdigest()
    assert before - timedelta(seconds=2) <= written.modified <= datetime.now(UTC) + timedelta(seconds=2)
    assert await store.head(KEY) == written
    assert await get(store, KEY) == data
    async with store.local_file(KEY) as path:
        assert path.read_bytes() == data


async def test_reads_in_chunks_and_from_an_offset(store: ModelStore) -> None:
    data = pattern(3 * CHUNK_SIZE + 5)
    await put(store, KEY, data, piece=777_777)
    async with aclosing(store.reader(KEY)) as chunks:
        assert [len(chunk) async for chunk in chunks] == [CHUNK_SIZE] * 3 + [5]
    for offset in (1, CHUNK_SIZE, len(data) - 1, len(data)):
        assert await get(store, KEY, offset) == data[offset:]


async def test_takes_many_tiny_pieces(store: ModelStore) -> None:
    data = pattern(3001)
    await put(store, KEY, data, piece=1)
    assert await get(store, KEY) == data


async def test_a_missing_object_is_not_there(store: ModelStore) -> None:
    assert await store.head(KEY) is None
    assert await store.delete(KEY) is False
    with pytest.raises(ObjectNotFound):
        await get(store, KEY)
    with pytest.raises(ObjectNotFound):
        async with store.local_file(KEY):
            pass
    with pytest.raises(ObjectNotFound):
        await store.copy(KEY, ObjectKey("models", "m"))


async def test_kinds_are_apart(store: ModelStore) -> None:
    await put(store, KEY, b"update")
    assert await store.head(ObjectKey("models", KEY.id)) is None


async def test_nothing_is_seen_before_commit(store: ModelStore) -> None:
    async with store.writer(KEY, max_bytes=LIMIT) as writer:
        await writer.write(pattern(3 * CHUNK_SIZE))
        assert await store.head(KEY) is None
        assert await ids(store) == []
        with pytest.raises(ObjectNotFound):
            await get(store, KEY)
        await writer.commit()
        assert await ids(store) == [KEY.id]


async def abandon(store: ModelStore) -> None:
    async with store.writer(KEY, max_bytes=LIMIT) as writer:
        await writer.write(pattern(3 * CHUNK_SIZE))


async def fail(store: ModelStore) -> None:
    async def raise_inside() -> None:
        async with store.writer(KEY, max_bytes=LIMIT) as writer:
            await writer.write(pattern(3 * CHUNK_SIZE))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await raise_inside()


async def be_cancelled(store: ModelStore) -> None:
    written = asyncio.Event()

    async def write_and_wait() -> None:
        async with store.writer(KEY, max_bytes=LIMIT) as writer:
            await writer.write(pattern(3 * CHUNK_SIZE))
            written.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(write_and_wait())
    await asyncio.wait_for(written.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def write_too_much(store: ModelStore) -> None:
    async with store.writer(KEY, max_bytes=CHUNK_SIZE) as writer:
        await writer.write(pattern(CHUNK_SIZE))
        with pytest.raises(ObjectTooLarge, match="at most 1048576 bytes"):
            await writer.write(b"x")


async def commit_too_much(store: ModelStore) -> None:
    async with store.writer(KEY, max_bytes=5) as writer:
        with pytest.raises(ObjectTooLarge):
            await writer.write(b"123456")
        with pytest.raises(ObjectTooLarge):
            await writer.commit()


@pytest.mark.parametrize("leave", [abandon, fail, be_cancelled, write_too_much, commit_too_much])
async def test_leaving_without_commit_leaves_nothing(
    store: ModelStore, home: Home, leave: Callable[[ModelStore], Awaitable[None]]
) -> None:
    await leave(store)
    assert await store.head(KEY) is None
    assert home.stored() == []
    data = pattern(10)
    await put(store, KEY, data)
    assert await get(store, KEY) == data


async def test_the_limit_itself_fits(store: ModelStore) -> None:
    async with store.writer(KEY, max_bytes=6) as writer:
        await writer.write(b"123")
        await writer.write(b"456")
        assert (await writer.commit()).size == 6


async def test_the_first_commit_of_a_key_wins(store: ModelStore, home: Home) -> None:
    first = await put(store, KEY, b"first")
    assert await put(store, KEY, b"second one") == first
    assert await get(store, KEY) == b"first"
    assert len(home.stored()) == 2


async def test_of_simultaneous_writers_one_wins_whole(store: ModelStore) -> None:
    contents = [pattern(2 * CHUNK_SIZE + seed, seed) for seed in range(6)]
    infos = await asyncio.gather(*(put(store, KEY, data) for data in contents))
    assert len(set(infos)) == 1
    winner = await get(store, KEY)
    assert winner in contents
    assert infos[0].sha256 == hashlib.sha256(winner).hexdigest()


async def test_a_reader_survives_deletion(store: ModelStore) -> None:
    data = pattern(9 * CHUNK_SIZE)
    await put(store, KEY, data)
    async with aclosing(store.reader(KEY)) as chunks:
        read = [await anext(chunks)]
        assert await store.delete(KEY) is True
        assert await store.head(KEY) is None
        read += [chunk async for chunk in chunks]
    assert b"".join(read) == data


async def test_a_key_may_be_used_again_after_deletion(store: ModelStore) -> None:
    await put(store, KEY, b"old")
    await store.delete(KEY)
    await put(store, KEY, b"new")
    assert await get(store, KEY) == b"new"


def open_files() -> int:
    """Files and connections; not deleted files and selectors, of which moto, in this process, leaves some."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(os.readlink(entry))
    return len([link for link in links if link.startswith(("/", "socket:")) and "(deleted)" not in link])


async def test_an_abandoned_reader_is_closed(store: ModelStore) -> None:
    async def abandon_readers(count: int) -> int:
        for _ in range(count):
            async with aclosing(store.reader(KEY)) as chunks:
                await anext(chunks)
        return open_files()

    await put(store, KEY, pattern(9 * CHUNK_SIZE))
    # A few connections may stay open, and moto closes its ends a little later.
    few = 4 + await abandon_readers(2)
    await abandon_readers(20)
    await until(lambda: open_files() <= few, "files and connections are closed")


async def test_copy_outlives_its_source(store: ModelStore) -> None:
    model = ObjectKey("models", "m1")
    source = await put(store, KEY, pattern(100))
    copied = await store.copy(KEY, model)
    assert (copied.key, copied.size, copied.sha256) == (model, source.size, source.sha256)
    await store.delete(KEY)
    assert await get(store, model) == pattern(100)
    assert await store.head(model) == copied


async def test_copy_keeps_the_first_bytes_of_its_target(store: ModelStore, home: Home) -> None:
    model = ObjectKey("models", "m1")
    await put(store, KEY, b"source")
    first = await put(store, model, b"there before")
    assert await store.copy(KEY, model) == first
    assert await get(store, model) == b"there before"
    assert len(home.stored()) == 4


async def test_list_is_sorted_and_filtered(store: ModelStore) -> None:
    names = [f"a{number:03}" for number in range(150)]
    for name in [*reversed(names), "b1"]:
        await put(store, ObjectKey("uploads", name), name.encode())
    assert await ids(store) == [*names, "b1"]
    assert await ids(store, "a14") == names[140:]
    assert [info async for info in store.list("models")] == []


async def test_ping_of_a_working_store(store: ModelStore) -> None:
    await store.ping()


@pytest.mark.parametrize(
    "bad",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-x",
        "_x",
        "a/b",
        "../a",
        "/etc/passwd",
        "a\\b",
        "a b",
        "a\n",
        "a\0b",
        "é",
        "a" * 129,
    ],
)
def test_only_names_are_ids(bad: str) -> None:
    with pytest.raises(InvalidArgument, match="model_id"):
        parse_id(bad, "model_id")
    with pytest.raises(InvalidArgument):
        ObjectKey("uploads", bad)


@pytest.mark.parametrize(
    "good", ["a", "0", "A.b_c-d", "a..b", "a" * 128, "b39a1c8e-8f5a-4b7c-9f0e-6a1c2d3e4f50"]
)
def test_usual_names_are_ids(good: str) -> None:
    assert parse_id(good) == good


def test_a_kind_is_one_of_the_known() -> None:
    with pytest.raises(InvalidArgument, match="uploads or models"):
        ObjectKey("tmp", "x")  # type: ignore[arg-type]


# ---- the disk adapter ----


@pytest.fixture
def file_size_limit() -> Iterator[None]:
    """The kernel refuses files above 3 MiB (EFBIG, as it refuses blocks of a full disk with ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("file_size_limit")
async def test_a_write_that_the_kernel_refuses_means_full(root: Path) -> None:
    async with disk_store(root) as store:
        with pytest.raises(StoreFull):
            await put(store, KEY, pattern(8 << 20))
        assert files_under(root) == []
        assert (await put(store, KEY, pattern(1000))).size == 1000


async def test_a_full_disk_at_commit_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with disk_store(root) as store:
        with monkeypatch.context() as patch:
            patch.setattr(diskfiles.os, "fsync", no_space)
            with pytest.raises(StoreFull):
                await put(store, KEY, pattern(100))
        assert await store.head(KEY) is None
        assert files_under(root) == []


async def test_a_root_that_is_gone_is_unavailable(root: Path) -> None:
    async with disk_store(root) as store:
        root.rename(root.with_name("elsewhere"))
        with pytest.raises(StoreUnavailable):
            await put(store, KEY, b"x")
        with pytest.raises(StoreUnavailable):
            await store.ping()
        with pytest.raises(StoreUnavailable):
            await store.head(KEY)
        with pytest.raises(StoreUnavailable):
            await get(store, KEY)
        with pytest.raises(StoreUnavailable):
            await store.delete(KEY)
        root.with_name("elsewhere").rename(root)
        await store.ping()
        await put(store, KEY, b"x")


async def test_data_cut_on_the_disk_is_not_read_as_whole(root: Path) -> None:
    async with disk_store(root) as store:
        await put(store, KEY, pattern(3 * CHUNK_SIZE))
        os.truncate(root / "uploads" / KEY.id / "data", CHUNK_SIZE)
        with pytest.raises(ObjectDamaged, match=r"1048576 bytes, its record says 3145728"):
            await get(store, KEY)


async def test_data_cut_while_it_is_read_is_not_read_as_whole(root: Path) -> None:
    async with disk_store(root) as store:
        await put(store, KEY, pattern(9 * CHUNK_SIZE))
        async with aclosing(store.reader(KEY)) as chunks:
            await anext(chunks)
            os.truncate(root / "uploads" / KEY.id / "data", CHUNK_SIZE)
            with pytest.raises(StoreUnavailable, match="ends at byte"):
                [chunk async for chunk in chunks]


async def test_a_damaged_record_concerns_its_object_only(root: Path) -> None:
    async with disk_store(root) as store:
        other = ObjectKey("uploads", "other")
        await put(store, KEY, b"x")
        await put(store, other, b"x")
        (root / "uploads" / KEY.id / "meta.json").write_text('{"size": 1')
        with pytest.raises(ObjectDamaged, match="damaged"):
            await store.head(KEY)
        assert await ids(store) == [other.id]


async def test_an_object_without_a_record_is_not_taken_for_one(root: Path) -> None:
    async with disk_store(root) as store:
        stray = root / "uploads" / KEY.id
        stray.mkdir()
        (stray / "data").write_bytes(b"stray")
        assert await store.head(KEY) is None
        with pytest.raises(StoreUnavailable, match="in the way"):
            await put(store, KEY, b"x")


async def test_copies_where_links_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(_source: Path, _target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(diskfiles.os, "link", no_links)
    async with disk_store(root) as store:
        await put(store, KEY, pattern(100))
        await store.copy(KEY, ObjectKey("models", "m"))
        assert await get(store, ObjectKey("models", "m")) == pattern(100)


async def test_a_writer_is_slowed_down_by_the_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a disk that does not move, a writer takes no more than its few chunks."""
    release = threading.Event()
    append = diskfiles.Part.append

    def stuck(part: diskfiles.Part, batch: list[memoryview]) -> None:
        release.wait(30)
        append(part, batch)

    monkeypatch.setattr(diskfiles.Part, "append", stuck)
    async with disk_store(root) as store, store.writer(KEY, max_bytes=LIMIT) as writer:
        taken = 0

        async def write_on() -> None:
            nonlocal taken
            for _ in range(20):
                await writer.write(bytes(CHUNK_SIZE))
                taken += 1

        task = asyncio.create_task(write_on())
        done, _ = await asyncio.wait((task,), timeout=0.3)
        assert not done
        assert taken <= 6
        release.set()
        await task
        assert (await writer.commit()).size == 20 * CHUNK_SIZE


CHILD = """
import asyncio, sys
from pathlib import Path
from fedcombiner.modelstorage.disk import DiskStore
from fedcombiner.modelstorage.store import ObjectKey

async def main():
    store = DiskStore(Path(sys.argv[1]))
    await store.start()
    async with store.writer(ObjectKey("uploads", "u1"), max_bytes=1 << 30) as writer:
        for _ in range(4):  # more than is kept in memory
            await writer.write(b"c" * (1 << 20))
        sys.stdout.write("writing\\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        await writer.commit()
    await store.close()

asyncio.run(main())
"""


def start_child(root: Path) -> "subprocess.Popen[bytes]":
    """A process that has begun to write `KEY`, and commits when it is sent a line."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"writing\n"
    return child


async def test_what_a_killed_process_left_is_removed(root: Path) -> None:
    child = start_child(root)
    assert files_under(root / "tmp") != []
    child.kill()
    child.communicate(timeout=10)
    assert files_under(root / "tmp") != []
    async with disk_store(root) as store:
        assert files_under(root / "tmp") == []
        assert await store.head(KEY) is None


async def test_what_a_living_process_has_under_way_is_left_alone(root: Path) -> None:
    child = start_child(root)
    async with disk_store(root) as store:
        assert files_under(root / "tmp") != []
        child.communicate(b"commit\n", timeout=10)
        assert child.returncode == 0
        assert await get(store, KEY) == b"c" * (4 * CHUNK_SIZE)


async def test_stores_of_one_process_share_a_root(root: Path) -> None:
    async with disk_store(root) as one, disk_store(root) as other, one.writer(KEY, max_bytes=LIMIT) as writer:
        await writer.write(b"x")
        async with disk_store(root):
            pass
        await writer.commit()
        assert await get(other, KEY) == b"x"


async def test_starting_again_after_a_failure(root: Path) -> None:
    root.write_text("a file in the way")
    store = DiskStore(root)
    with pytest.raises(StoreUnavailable):
        await store.start()
    with pytest.raises(StoreUnavailable, match="not started"):
        await store.head(KEY)
    root.unlink()
    await store.start()
    await put(store, KEY, b"x")
    await store.close()
    assert list((root / "tmp").iterdir()) == [root / "tmp" / "lock"]
