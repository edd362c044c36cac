"""TLS as operators set it: each service with good files, and with files and settings that cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
import structlog
from combiner import app as combiner
from combiner.settings import CombinerSettings
from discovery_mock import app as discovery
from discovery_mock.settings import DiscoverySettings
from modelstore import app as modelstore
from modelstore.settings import ModelstoreSettings
from typer.testing import CliRunner

from fedcombiner.cli.main import app as command
from fedcombiner.cli.output import USAGE
from fedcombiner.client.trust import ONLY_TLS, Trust, tls_trouble
from fedcombiner.servicekit.errors import StartupError
from fedcombiner.servicekit.lifecycle import Stop
from tests.contract.state_kit import Server
from tests.tls_kit import Certificates

DEADLINE = 20.0
LOCAL = {"host": "127.0.0.1", "port": 0, "metrics_host": "127.0.0.1", "metrics_port": 0}

Name = Literal["combiner", "modelstore", "discovery"]
SERVICES: list[Name] = ["combiner", "modelstore", "discovery"]


@pytest.fixture
def start(redis_server: Server, tmp_path: Path) -> Callable[..., Any]:
    """`async with start(name, **settings) as (port, metrics_port)`: a service with these settings."""
    places = {"data": tmp_path / "models", "scratch": tmp_path / "scratch"}

    @asynccontextmanager
    async def start(name: Name, **others: Any) -> AsyncIterator[tuple[int, int]]:
        stop, ports = Stop(), asyncio.get_running_loop().create_future()

        def started(port: int, metrics_port: int) -> None:
            ports.set_result((port, metrics_port))

        if name == "combiner":
            own = CombinerSettings(**{**LOCAL, **places, "redis_url": redis_server.url, **others})
            serving = combiner.serve(own, stop, started)
        elif name == "modelstore":
            serving = modelstore.serve(ModelstoreSettings(**{**LOCAL, **places, **others}), stop, started)
        else:
            serving = discovery.serve(DiscoverySettings(**{**LOCAL, **others}), stop, started)
        task = asyncio.create_task(serving)
        await asyncio.wait({task, ports}, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield ports.result()
        stop.set("end of the test")
        await asyncio.wait_for(task, DEADLINE)

    return start


@pytest.mark.parametrize("name", SERVICES)
async def test_each_service_speaks_tls_to_clients_only(
    start: Callable[..., Any], certificates: Certificates, name: Name
) -> None:
    async with start(name, **certificates.good.settings) as (port, metrics_port):
        address = f"localhost:{port}"
        assert await tls_trouble(address, None) == ONLY_TLS
        assert await tls_trouble(address, Trust(certificates.ca_pem)) == ""
        assert "no authority" in await tls_trouble(address, Trust(certificates.other_ca.read_bytes()))
        async with httpx.AsyncClient(trust_env=False) as http:
            metrics = (await http.get(f"http://127.0.0.1:{metrics_port}/metrics")).text
    [days] = [
        line for line in metrics.splitlines() if line.startswith("fedcombiner_tls_certificate_days_left ")
    ]
    assert float(days.split()[1]) == pytest.approx(30, abs=0.1)


@pytest.mark.parametrize("name", SERVICES)
async def test_a_pair_that_cannot_be_ends_the_start_and_is_named(
    start: Callable[..., Any], certificates: Certificates, name: Name, tmp_path: Path
) -> None:
    good = certificates.good
    gone = tmp_path / "gone.pem"
    for files, complaint in (
        ({"tls_cert_file": gone, "tls_key_file": good.key}, f"TLS_CERT_FILE={gone}: cannot be read: No such"),
        ({"tls_cert_file": good.certificate, "tls_key_file": gone}, f"TLS_KEY_FILE={gone}: cannot be read"),
        (
            {"tls_cert_file": good.certificate, "tls_key_file": certificates.unknown.key},
            f"TLS_KEY_FILE={certificates.unknown.key}: the private key does not fit the certificate",
        ),
    ):
        with pytest.raises(StartupError) as caught:
            async with start(name, **files):
                pass
        assert str(caught.value).startswith(complaint)
        assert len(str(caught.value).splitlines()) == 1


async def test_an_expired_certificate_is_a_warning(
    start: Callable[..., Any], certificates: Certificates
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with start("discovery", **certificates.expired.settings):
            pass
    [warning] = [entry for entry in logs if entry["log_level"] == "warning"]
    assert "has expired" in warning["event"]
    assert warning["names"] == ("localhost", "127.0.0.1")
    assert warning["days_left"] == pytest.approx(-30, abs=0.1)


@pytest.mark.parametrize("option", ["--tls-cert", "--tls-key"])
def test_serve_wants_both_files(option: str, tmp_path: Path) -> None:
    said = CliRunner().invoke(command, ["serve", "--data", str(tmp_path), option, "x.pem"])
    assert said.exit_code == USAGE
    assert "TLS_CERT_FILE and TLS_KEY_FILE are needed together" in said.stderr
