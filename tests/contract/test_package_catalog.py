"""Compute packages on every store: what was put is given, and what was activated last counts."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from discovery_mock.catalog import FRESH_S, Package, PackageCatalog

from fedcombiner.modelstorage.disk import DiskStore
from fedcombiner.modelstorage.store import ModelStore, ObjectKey, StoreUnavailable
from fedcombiner.servicekit.errors import InvalidArgument, NotFound
from tests.clock import Clock
from tests.contract.s3_kit import new_place
from tests.contract.store_kit import Home, files_under, pattern


@pytest.fixture(params=["disk", "moto", "minio"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    root = tmp_path / "root"
    if request.param == "disk":
        return Home(lambda: DiskStore(root), lambda: [str(path) for path in files_under(root)])
    return new_place(request.getfixturevalue(request.param)).home(root)


@pytest.fixture
async def store(home: Home) -> AsyncIterator[ModelStore]:
    store = home.make()
    await store.start()
    yield store
    await store.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def catalog(store: ModelStore, clock: Clock) -> PackageCatalog:
    return PackageCatalog(store, clock=clock)


Put = Callable[..., "asyncio.Future[Package]"]


@pytest.fixture
def put(catalog: PackageCatalog, tmp_path: Path) -> Callable[[bytes, str], object]:
    async def put(data: bytes, name: str = "p", into: PackageCatalog = catalog) -> Package:
        path = tmp_path / "archive.tgz"
        path.write_bytes(data)
        return await into.put(path, name)

    return put


async def read(catalog: PackageCatalog, package: Package) -> bytes:
    async with aclosing(catalog.reader(package)) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def test_a_package_is_given_back_as_it_was_put(catalog: PackageCatalog, put: Put) -> None:
    data = pattern((3 << 20) + 7)
    package = await put(data, "mnist")
    assert (package.id, package.size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert (package.name, package.file_name) == ("mnist", "mnist.tgz")
    assert await read(catalog, package) == data
    assert await catalog.all() == [package]


async def test_the_same_bytes_are_one_package(catalog: PackageCatalog, put: Put) -> None:
    first = await put(b"data", "first")
    assert await put(b"data", "second") == first
    assert await catalog.all() == [first]


async def test_packages_are_found_by_name_and_id(catalog: PackageCatalog, put: Put) -> None:
    old, new, other = await put(b"1", "mnist"), await put(b"2", "mnist"), await put(b"3", "other")
    assert await catalog.all() == [old, new, other]
    assert await catalog.find("mnist") == new
    assert await catalog.find("mnist.tgz") == new
    assert await catalog.find(old.id) == old
    assert await catalog.find(other.id[:6]) == other
    for wanted in ("nothing", other.id[:5], "", "../x", "f" * 64):
        with pytest.raises(NotFound, match="there is no package"):
            await catalog.find(wanted)


async def test_an_id_must_not_be_that_of_several(
    catalog: PackageCatalog, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("discovery_mock.catalog._SHORTEST_ID", 0)
    for data in (b"1", b"2"):
        await put(data)
    with pytest.raises(InvalidArgument, match="more of the id"):
        await catalog.find("")


async def test_none_is_active_before_one_is(catalog: PackageCatalog, put: Put) -> None:
    assert await catalog.active() is None
    await put(b"1")
    assert await catalog.active() is None


async def test_the_last_one_activated_counts(catalog: PackageCatalog, put: Put, store: ModelStore) -> None:
    first, second = await put(b"1"), await put(b"2")
    for package in (first, second, first):
        await catalog.activate(package)
        assert await catalog.active() == package
        assert await PackageCatalog(store).active() == package, "also for another process"


async def test_another_process_notices_within_seconds(
    catalog: PackageCatalog, put: Put, store: ModelStore, clock: Clock
) -> None:
    first, second = await put(b"1"), await put(b"2")
    await catalog.activate(first)
    await PackageCatalog(store).activate(second)
    assert await catalog.active() == first
    clock.now += FRESH_S
    assert await catalog.active() == second


async def test_only_some_notes_are_kept(catalog: PackageCatalog, put: Put, store: ModelStore) -> None:
    package = await put(b"1")
    for _ in range(8):
        await catalog.activate(package)
    async with aclosing(store.list("packages", "active-")) as notes:
        assert [note.key.id[-2:] async for note in notes] == ["04", "05", "06", "07", "08"]


async def test_of_several_at_once_each_has_its_turn(put: Put, store: ModelStore) -> None:
    packages = [await put(bytes([i])) for i in range(3)]
    await asyncio.gather(*(PackageCatalog(store).activate(package) for package in packages))
    async with aclosing(store.list("packages", "active-")) as notes:
        assert len([note async for note in notes]) == 3
    assert await PackageCatalog(store).active() in packages


async def test_while_the_store_is_away_the_last_known_one_counts(
    catalog: PackageCatalog, put: Put, clock: Clock, monkeypatch: pytest.MonkeyPatch, store: ModelStore
) -> None:
    package = await put(b"1")
    await catalog.activate(package)
    unknowing = PackageCatalog(store, clock=clock)
    tries = 0

    def away(*_: object) -> object:
        nonlocal tries
        tries += 1
        raise StoreUnavailable("gone fishing")

    monkeypatch.setattr(type(store), "list", away)
    clock.now += FRESH_S
    assert await catalog.active() == package
    assert await catalog.active() == package
    assert tries == 1, "it is not asked at every request"
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="gone fishing"):
            await unknowing.active()
    assert tries == 2


async def test_packages_and_models_are_apart(put: Put, store: ModelStore) -> None:
    package = await put(b"1")
    for kind in ("uploads", "models"):
        assert await store.head(ObjectKey(kind, f"archive-{package.id}")) is None
