"""Places that are IPv6 addresses."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from combiner.announce import Announcer
from combiner.interfaces import CombinerInterface
from combiner.modelstores import Modelstores
from combiner.seedconfig import SeedConfig
from combiner.settings import CombinerSettings
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from fedcombiner.servicekit.http import HttpServer
from fedcombiner.servicekit.settings import InvalidSettings
from tests.contract.state_kit import Server
from tests.rpc.seed_kit import seed_combiner


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no ::1")


@needs_ipv6
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_the_seeds_host_may_be_an_ipv6_address(server: Server, tmp_path: Path, host: str) -> None:
    with seed_combiner(server, tmp_path, host=host) as combiner:
        seen = CombinerInterface({"name": "api"}, combiner.id, "::1", None, combiner.port)
        assert seen.list_active_clients() == "{}"


@pytest.mark.parametrize(
    ("host", "listen", "advertise"),
    [
        ("2001:db8::5", "::", "[2001:db8::5]:12080"),
        ("::1", "::1", "[::1]:12080"),
        ("192.0.2.5", "0.0.0.0", "192.0.2.5:12080"),
    ],
)
def test_what_the_seeds_config_means(host: str, listen: str, advertise: str) -> None:
    settings = SeedConfig.read({"host": host, "discover_host": "2001:db8::9", "discover_port": 8092}).settings
    assert (settings.host, settings.advertise) == (listen, advertise)
    assert settings.discovery_url == "http://[2001:db8::9]:8092"


def test_it_is_announced_as_clients_put_it_before_a_port() -> None:
    announced: Any = Announcer("http://discovery:8092", "combiner", "[2001:db8::5]:12080")
    assert announced._request["address"] == "[2001:db8::5]"


@pytest.mark.parametrize("place", ["2001:db8::5:9464", "[2001:db8::5]", "[fe80::1%eth0]:1", "[a]b:1"])
@pytest.mark.parametrize("setting", ["modelstores", "advertise"])
def test_an_address_without_brackets_is_refused(setting: str, place: str) -> None:
    with pytest.raises(InvalidSettings, match=setting.upper()):
        CombinerSettings.checked(**{setting: place})


@needs_ipv6
@pytest.mark.parametrize("name", ["[::1]", "both.example"])
async def test_a_modelstore_may_be_at_an_ipv6_address(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a name with addresses of both families only those of IPv4 are asked."""
    asked = 0

    async def ready(_request: object) -> Response:
        nonlocal asked
        asked += 1
        return Response()

    host = "::1" if name == "[::1]" else "127.0.0.1"
    modelstore = HttpServer(Starlette(routes=[Route("/readyz", ready)]), host, 0)
    await modelstore.start()
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", _both)
    watch = Modelstores(CombinerSettings(modelstores=f"{name}:{modelstore.port}").modelstore_places)
    try:
        assert not await watch.away()
        assert asked == 1
        await modelstore.stop()
        assert await watch.away()
    finally:
        await watch.aclose()
        await modelstore.stop()


async def _both(host: str, port: int, **how: Any) -> list[Any]:
    if host != "both.example":
        return socket.getaddrinfo(host, port, **how)
    return [
        *socket.getaddrinfo("::1", port, **how),
        *socket.getaddrinfo("127.0.0.1", port, **how),
    ]
