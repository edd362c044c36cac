"""A small disk that fills up: the model store says so and leaves room for what else is on it."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import httpx
import modelstore.app
import pytest
import redis.asyncio
from modelstore.settings import ModelstoreSettings
from redis.exceptions import RedisError
from structlog.testing import capture_logs

from fedcombiner.modelstorage.disk import DiskStore
from fedcombiner.modelstorage.store import ObjectKey, StoreFull
from fedcombiner.standalone.redis_child import RedisChild
from tests.rpc.access_kit import LOCAL, running
from tests.rpc.modelservice_kit import DEADLINE, Calls, eventually, messages_of, put, serve, started

MIB = 1 << 20
DISK = 48 * MIB
RESERVE = 16 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The directory of a disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)]
    mount = shutil.which("mount")
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here: that takes root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def free(disk: Path) -> int:
    return shutil.disk_usage(disk).free


def fill(disk: Path, left: int = 0) -> Path:
    """Something that is no model takes the disk, but for what is left."""
    path = disk / "in-the-way"
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while free(disk) > left and file.write(bytes(min(MIB, max(1, free(disk) - left)))):
            pass
    return path


def refusal(address: str, messages: Iterator[bytes]) -> grpc.RpcError:
    """The error that ends an upload, as FEDn's clients make one: `grpc.aio` may lose it while it writes."""
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.stream_unary("/grpc.ModelService/Upload")(messages, timeout=DEADLINE)
    return caught.value


async def test_an_upload_leaves_the_reserve_free(disk: Path) -> None:
    async with started(DiskStore(disk, reserve=RESERVE)) as store, serve(store) as service:
        await service.upload(*messages_of(bytes(24 * MIB), "first"))
        error = await asyncio.to_thread(refusal, service.address, messages_of(bytes(24 * MIB), "second"))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "the disk of the model store is full" in (error.details() or "")
        assert free(disk) >= RESERVE
        await store.ping()  # nothing is left of the second
        assert await store.delete(ObjectKey("uploads", "first"))
        await service.upload(*messages_of(bytes(24 * MIB), "second"))


@pytest.mark.parametrize("left", [0, RESERVE // 2])
async def test_a_full_disk_is_seen_and_can_be_emptied(disk: Path, left: int) -> None:
    async with started(DiskStore(disk, reserve=RESERVE)) as store:
        key = ObjectKey("models", "m1")
        await put(store, key, bytes(MIB))
        in_the_way = fill(disk, left)
        with pytest.raises(StoreFull):
            await store.ping()
        with pytest.raises(StoreFull):
            await put(store, ObjectKey("models", "m2"), b"data")
        assert b"".join([chunk async for chunk in store.reader(key)]) == bytes(MIB)
        assert await store.delete(key) is True
        in_the_way.unlink()
        await store.ping()


async def test_a_modelstore_on_a_full_disk_serves_what_it_has_and_says_why_it_takes_nothing(
    disk: Path, tmp_path: Path
) -> None:
    async with started(DiskStore(disk)) as store:
        await put(store, ObjectKey("models", "m1"), b"model")
    fill(disk, RESERVE // 2)
    settings = ModelstoreSettings(
        **LOCAL, data=disk, scratch=tmp_path / "scratch", disk_reserve_bytes=RESERVE
    )
    async with (
        running(modelstore.app.serve, settings) as (port, operations),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{operations}") as http,
    ):
        async with asyncio.timeout(DEADLINE):
            while (await http.get("/readyz")).status_code != httpx.codes.OK:
                await asyncio.sleep(0.02)
        status = (await http.get("/statusz")).json()["backends"]["store"]
        assert status["up"] is False
        assert "the disk of the model store is full" in status["last_error"]
        assert await Calls(channel).content("m1") == b"model"


async def test_the_embedded_redis_says_that_the_disk_is_full(disk: Path) -> None:
    with capture_logs() as logs:
        child = RedisChild(disk / "data")
        await child.start()
        try:
            fill(disk)
            async with redis.asyncio.from_url(child.url) as client:
                for _ in range(64):
                    with suppress(RedisError, OSError):
                        await client.set("key", bytes(MIB))
                await eventually(
                    lambda: any("No space left" in line.get("last", "") for line in logs),
                    "the log to say that no space is left",
                )
        finally:
            await child.stop()
