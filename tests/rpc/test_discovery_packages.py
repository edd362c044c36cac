"""Compute packages over HTTP: put by operators, fetched by clients of every generation."""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from discovery_mock.downloads import Download

from fedcombiner.modelstorage.disk import DiskStore
from fedcombiner.modelstorage.store import ObjectKey, StoreUnavailable
from fedcombiner.servicekit.http import HttpServer
from tests.packages_kit import archive_of
from tests.rpc.discovery_kit import Discovery

# What each generation asks for its package and its checksum.
FETCHES = {
    "0.5": ("/context", "/checksum"),
    "0.6": ("/download_package", "/get_package_checksum"),
    "0.17 v2": ("//download_package", "//get_package_checksum"),
    "0.21": ("/api/v1/packages/download", "/api/v1/packages/checksum"),
    "0.33": ("//api/v1/packages/download", "//api/v1/packages/checksum"),
}
each_generation = pytest.mark.parametrize(("download", "checksum"), FETCHES.values(), ids=list(FETCHES))


@pytest.fixture
async def discovery(tmp_path: Path) -> AsyncIterator[Discovery]:
    async with Discovery(tmp_path).running() as running:
        yield running


async def fetch(discovery: Discovery, path: str, **query: str) -> httpx.Response:
    return await discovery.http.get(discovery.url + path, params=query)


@each_generation
async def test_a_client_fetches_its_package(discovery: Discovery, download: str, checksum: str) -> None:
    put = await discovery.put_package(random.Random(1).randbytes((1 << 20) + 9), name="mnist")
    answer = await fetch(discovery, download)
    assert answer.status_code == 200
    assert answer.headers["content-disposition"] == "attachment; filename=mnist.tgz"
    assert int(answer.headers["content-length"]) == len(answer.content) == put["size"]
    assert (await fetch(discovery, checksum)).json()["checksum"] == hashlib.sha256(answer.content).hexdigest()
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        assert "client/fedn.yaml" in tar.getnames()


@each_generation
async def test_without_a_package_a_client_tries_again(
    discovery: Discovery, download: str, checksum: str
) -> None:
    for path in (download, checksum):
        answer = await fetch(discovery, path)
        # Clients of the first generation take anything else for a package that is broken, and end.
        assert (answer.status_code, answer.json()["status"]) == (203, "retry")
        assert "content-disposition" not in answer.headers
        assert "No compute package is set yet" in answer.json()["message"]


@each_generation
async def test_a_client_may_name_a_package(discovery: Discovery, download: str, checksum: str) -> None:
    other = await discovery.put_package(b"other", name="other")
    await discovery.put_package(b"active", name="active")
    for name in ("other", "other.tgz", other["id"]):
        assert (await fetch(discovery, download, name=name)).content == archive_of(b"other")
        assert (await fetch(discovery, checksum, name=name)).json()["checksum"] == other["id"]
    for path in (download, checksum):
        answer = await fetch(discovery, path, name="../nothing")
        assert (answer.status_code, answer.json()["message"]) == (404, "there is no package '../nothing'")


async def test_what_a_client_writes_into_its_file(discovery: Discovery) -> None:
    host, port = "127.0.0.1", int(discovery.url.rpartition(":")[2])
    known = {"network_id": "federated-combiner", "discover_host": host, "discover_port": port}
    assert (await fetch(discovery, "/get_client_config")).json() == known
    for host, told in (("fl.example.org:80", "fl.example.org"), ("<evil>", "127.0.0.1")):
        answer = await discovery.http.get("/get_client_config", headers={"Host": host})
        assert answer.json()["discover_host"] == told
    put = await discovery.put_package()
    assert (await fetch(discovery, "/get_client_config")).json() == {**known, "checksum": put["id"]}
    assert (await fetch(discovery, "/get_client_config", checksum="True")).json()["checksum"] == put["id"]
    assert (await fetch(discovery, "/get_client_config", checksum="false")).json() == known


async def listed(discovery: Discovery) -> list[dict[str, Any]]:
    found = (await fetch(discovery, "/packages")).json()["packages"]
    assert isinstance(found, list)
    return found


async def test_packages_are_put_listed_and_activated(discovery: Discovery) -> None:
    first = await discovery.put_package(b"1", name="mnist", activate=False)
    assert first == {
        "id": hashlib.sha256(archive_of(b"1")).hexdigest(),
        "name": "mnist",
        "file_name": "mnist.tgz",
        "size": len(archive_of(b"1")),
        "created": first["created"],
        "active": False,
    }
    assert (await fetch(discovery, "/download_package")).status_code == 203
    second = await discovery.put_package(b"2", name="mnist")
    assert await listed(discovery) == [first, {**second, "active": True}]
    assert (await discovery.http.post(f"/packages/{first['id'][:8]}/activate")).json()["active"]
    assert [package["active"] for package in await listed(discovery)] == [True, False]
    assert (await fetch(discovery, "/download_package")).content == archive_of(b"1")
    assert (await fetch(discovery, "/packages/mnist")).content == archive_of(b"2")
    assert (await fetch(discovery, f"/packages/{first['id']}")).content == archive_of(b"1")


async def test_nothing_is_left_of_an_upload(discovery: Discovery, tmp_path: Path) -> None:
    await discovery.put_package()
    refused = await discovery.http.post("/packages", params={"name": "p"}, content=b"no archive")
    assert refused.status_code == 400
    left = [path for path in (tmp_path / "scratch").rglob("*") if path.is_file() and path.name != "lock"]
    assert left == []


@pytest.mark.parametrize("chunked", [True, False])
async def test_an_archive_that_is_too_large_is_not_read_to_its_end(tmp_path: Path, chunked: bool) -> None:
    async with Discovery(tmp_path, max_package_bytes=1000).running() as discovery:
        sent = 0

        async def body() -> AsyncGenerator[bytes, None]:
            nonlocal sent
            for _ in range(10_000):
                sent += 1
                yield bytes(100_000)

        headers = {} if chunked else {"Content-Length": str(10**9)}
        try:
            answer = await discovery.http.post(
                "/packages", params={"name": "p"}, content=body(), headers=headers
            )
            assert (answer.status_code, answer.json()["message"]) == (
                413,
                "the archive is larger than 1000 bytes",
            )
        except httpx.NetworkError:
            pass  # the connection may be closed under what is still on its way
        assert sent < 10_000
        assert (await fetch(discovery, "/packages")).json() == {"packages": []}


async def test_an_upload_that_stalls_is_cut_off(tmp_path: Path) -> None:
    async with Discovery(tmp_path, idle_seconds=0.05).running() as discovery:
        host, _, port = discovery.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /packages?name=p HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nbegin")
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        writer.close()


class Flaky(DiskStore):
    """Breaks each reading of an archive after its first chunk, `breaks` times."""

    breaks = 0

    async def reader(self, key: ObjectKey, offset: int = 0) -> AsyncGenerator[bytes, None]:  # type: ignore[override]
        async for chunk in super().reader(key, offset):
            yield chunk
            if key.id.startswith("archive-") and self.breaks:
                self.breaks -= 1
                raise StoreUnavailable("the cable was pulled")


async def test_a_download_goes_on_when_the_store_comes_back(tmp_path: Path) -> None:
    store = Flaky(tmp_path / "store")
    async with Discovery(tmp_path, store=store).running() as discovery:
        put = await discovery.put_package(random.Random(1).randbytes(2 << 20))
        store.breaks = 2
        answer = await fetch(discovery, "/download_package")
        assert hashlib.sha256(answer.content).hexdigest() == put["id"]
        assert store.breaks == 0


async def test_a_download_ends_when_the_store_stays_away(tmp_path: Path) -> None:
    store = Flaky(tmp_path / "store")
    async with Discovery(tmp_path, store=store, store_seconds=0.01).running() as discovery:
        await discovery.put_package(random.Random(1).randbytes(2 << 20))
        store.breaks = 100
        with pytest.raises(httpx.RemoteProtocolError):
            await fetch(discovery, "/download_package")
        store.breaks = 0
        assert (await fetch(discovery, "/download_package")).status_code == 200


async def test_a_reader_that_takes_nothing_is_cut_off(discovery: Discovery) -> None:
    put = await discovery.put_package()
    package = replace(await discovery.app.catalog.find(put["id"]), size=1 << 40)

    async def endless() -> AsyncGenerator[bytes, None]:
        while True:
            yield bytes(1 << 20)

    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (await Download.begin(endless(), package, idle=0.05))(scope, receive, send)
        ended.set()

    server = HttpServer(app, "127.0.0.1", 0)
    await server.start()
    _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(10):
        await ended.wait()
    writer.close()
    await server.stop()
