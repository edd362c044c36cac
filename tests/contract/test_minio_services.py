"""The modelstore with STORE=minio: as a service, before and after its bucket is made."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import httpx
import pytest
from minio import Minio
from modelstore.app import serve
from modelstore.settings import ModelstoreSettings

from fedcombiner.modelstorage.minio import MinioStore
from fedcombiner.modelstorage.s3.bucket import S3Location, connect
from fedcombiner.modelstorage.stores import STORES, make_store
from fedcombiner.servicekit.errors import StartupError
from fedcombiner.servicekit.lifecycle import Stop
from fedcombiner.servicekit.settings import InvalidSettings
from fedcombiner.wire.pb import fedn_pb2_grpc
from fedcombiner.wire.pb.fedn_pb2 import IN_PROGRESS, OK, ModelRequest
from tests.contract.store_kit import pattern

DEADLINE = 20.0


def settings(url: str, scratch: Path, **changes: object) -> ModelstoreSettings:
    values = {
        "host": "127.0.0.1",
        "port": 0,
        "metrics_host": "127.0.0.1",
        "metrics_port": 0,
        "store": "minio",
        "scratch": scratch,
        "minio_url": url,
        "minio_bucket": "bucket-of-services",
        "minio_access_key": "modelstore",
        "minio_secret_key": "modelstore-secret",
    }
    return ModelstoreSettings(**{**values, **changes})


@asynccontextmanager
async def running(chosen: ModelstoreSettings) -> AsyncIterator[tuple[int, httpx.AsyncClient]]:
    stop = Stop()
    ports: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(chosen, stop, lambda *both: ports.set_result(both)))
    await asyncio.wait({task, ports}, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    port, metrics_port = ports.result()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{metrics_port}") as http:
        yield port, http
    stop.set("end of the test")
    await asyncio.wait_for(task, DEADLINE)


def messages(data: bytes) -> list[ModelRequest]:
    pieces = [data[start : start + (1 << 20)] for start in range(0, len(data), 1 << 20)]
    chunks = [ModelRequest(id="m1", status=IN_PROGRESS, data=piece) for piece in pieces]
    return [*chunks, ModelRequest(id="m1", status=OK)]


async def test_models_go_up_and_down_once_the_bucket_is_there(moto: str, tmp_path: Path) -> None:
    data = pattern((18 << 20) + 3)
    async with running(settings(moto, tmp_path)) as (port, http):
        async with asyncio.timeout(DEADLINE):
            while "combiner storage setup" not in (await http.get("/statusz")).text:
                await asyncio.sleep(0.02)
        assert (await http.get("/readyz")).status_code == 503
        admin(moto).make_bucket("bucket-of-services")
        async with asyncio.timeout(DEADLINE):
            while (await http.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.02)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = fedn_pb2_grpc.ModelServiceStub(channel)
            assert (await stub.Upload(iter(messages(data)), timeout=DEADLINE)).status == OK
            call = stub.Download(ModelRequest(id="m1"), timeout=DEADLINE)
            answers = [answer async for answer in call]
        assert b"".join(answer.data for answer in answers) == data
        assert answers[-1].status == OK
        assert "modelstore-secret" not in (await http.get("/statusz")).text


def admin(url: str) -> Minio:
    return connect(S3Location(url, "", "root", "root-secret"))


def test_the_settings_allow_the_stores_that_there_are() -> None:
    assert sorted(STORES) == ["disk", "minio"]
    for name in STORES:
        assert settings("http://minio:9000", Path("s"), store=name).store == name
    with pytest.raises(ValueError, match="disk' or 'minio"):
        settings("http://minio:9000", Path("s"), store="memory")


async def test_the_settings_choose_the_store(tmp_path: Path) -> None:
    store = make_store(settings("http://minio:9000", tmp_path))
    assert isinstance(store, MinioStore)
    await store.close()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"MINIO_ACCESS_KEY": ""}, "STORE=minio needs MINIO_ACCESS_KEY and MINIO_SECRET_KEY"),
        ({"MINIO_SECRET_KEY": ""}, "STORE=minio needs MINIO_ACCESS_KEY and MINIO_SECRET_KEY"),
        ({"MINIO_URL": "minio:9000"}, "MINIO_URL='minio:9000'"),
        ({"MINIO_URL": "http://minio:9000/path"}, "MINIO_URL="),
        ({"MINIO_BUCKET": "A_Bucket"}, "MINIO_BUCKET='A_Bucket'"),
        ({"STORE": "s3"}, "STORE='s3'.*disk or minio"),
    ],
)
def test_settings_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], expected: str
) -> None:
    good = {"STORE": "minio", "MINIO_ACCESS_KEY": "modelstore", "MINIO_SECRET_KEY": "very-secret"}
    for name, value in {**good, **changes}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettings, match=expected) as caught:
        ModelstoreSettings.load()
    assert "very-secret" not in str(caught.value)


async def test_authorities_that_cannot_be_read_stop_the_start(tmp_path: Path) -> None:
    for content, name in ((None, "missing.pem"), (b"no certificate", "bad.pem")):
        path = tmp_path / name
        if content:
            path.write_bytes(content)
        with pytest.raises(StartupError, match=f"MINIO_CA_FILE=.*{name}"):
            make_store(settings("https://minio:9000", tmp_path, minio_ca_file=path))


async def test_without_the_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fedcombiner.modelstorage.minio", None)
    with pytest.raises(StartupError, match=r"pip install 'federated-combiner\[minio\]'"):
        make_store(settings("http://minio:9000", tmp_path))
