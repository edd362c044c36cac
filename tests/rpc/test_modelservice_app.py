"""The modelstore as it is composed: ports, health, metrics, start and end."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from modelstore.app import serve
from modelstore.settings import ModelstoreSettings

from fedcombiner.servicekit.errors import StartupError
from fedcombiner.servicekit.lifecycle import Stop
from fedcombiner.servicekit.settings import InvalidSettings
from fedcombiner.wire.chunks import encode_request
from fedcombiner.wire.pb.fedn_pb2 import IN_PROGRESS, OK
from tests.rpc.modelservice_kit import DEADLINE, Calls


def settings(data: Path, **others: object) -> ModelstoreSettings:
    values = {"host": "127.0.0.1", "port": 0, "metrics_host": "127.0.0.1", "metrics_port": 0, "data": data}
    return ModelstoreSettings(**{**values, **others})


@asynccontextmanager
async def running(data: Path) -> AsyncIterator[tuple[Calls, httpx.AsyncClient]]:
    stop = Stop()
    ports: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(settings(data), stop, lambda *both: ports.set_result(both)))
    await asyncio.wait({task, ports}, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    port, metrics_port = ports.result()
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{metrics_port}") as http,
    ):
        yield Calls(channel), http
    stop.set("end of the test")
    await asyncio.wait_for(task, DEADLINE)


async def ready(http: httpx.AsyncClient) -> bool:
    return (await http.get("/readyz")).status_code == httpx.codes.OK


async def until_ready(http: httpx.AsyncClient, expected: bool = True) -> None:
    async with asyncio.timeout(DEADLINE):
        while await ready(http) is not expected:
            await asyncio.sleep(0.02)


MODEL = (encode_request("m1", IN_PROGRESS, b"12345"), encode_request("m1", OK))


async def test_a_modelstore_serves_and_shows_what_it_did(tmp_path: Path) -> None:
    async with running(tmp_path) as (service, http):
        await until_ready(http)
        await service.upload(*MODEL)
        assert await service.content("m1") == b"12345"
        text = (await http.get("/metrics")).text
        assert 'fedcombiner_model_bytes_total{way="in"} 5.0' in text
        assert 'fedcombiner_model_bytes_total{way="out"} 5.0' in text
        for way in ("in", "out"):
            for state in ("running", "slow", "waiting"):
                assert f'fedcombiner_transfers_{state}{{way="{way}"}} 0.0' in text
            assert f'fedcombiner_transfer_events_total{{event="cut",way="{way}"}} 0.0' in text
        assert 'backend_up{backend="store"} 1.0' in text
        status = (await http.get("/statusz")).json()
        assert (status["service"], status["backends"]["store"]["up"]) == ("modelstore", True)
        health = health_pb2_grpc.HealthStub(service.channel)
        reply = await health.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_models_outlive_their_process(tmp_path: Path) -> None:
    async with running(tmp_path) as (service, _):
        await service.upload(*MODEL)
    async with running(tmp_path) as (service, _):
        assert await service.content("m1") == b"12345"


async def test_it_starts_before_its_store_and_waits_for_it(tmp_path: Path) -> None:
    data = tmp_path / "store"
    data.write_text("in the way")
    async with running(data) as (service, http):
        assert not await ready(http)
        upload = asyncio.create_task(service.upload(*MODEL))
        done, _ = await asyncio.wait({upload}, timeout=0.1)
        assert not done
        data.unlink()
        assert (await upload).status == OK
        await until_ready(http)


async def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=f"PORT={port}"):
            await serve(settings(tmp_path, port=port), Stop())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("store", "floppy"),
        ("max_model_bytes", 0),
        ("max_transfers", 0),
        ("max_slow_transfers", 0),
        ("max_waiting_transfers", 0),
        ("min_transfer_rate", 0),
        ("idle_seconds", -1),
        ("port", 70_000),
    ],
)
def test_a_setting_that_cannot_be(name: str, value: object) -> None:
    with pytest.raises(InvalidSettings, match=name.upper()):
        ModelstoreSettings.load(**{name: value})
