"""The discovery over real HTTP: what combiners and clients of FEDn send, and what they are told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from discovery_mock.app import DiscoveryApp
from discovery_mock.registry import MAX_COMBINERS
from discovery_mock.settings import DiscoverySettings

from fedcombiner.servicekit.http import HttpServer
from fedcombiner.servicekit.metrics import Metrics

ANNOUNCE = {
    "combiner_id": "combiner",
    "address": "gateway",
    "fqdn": None,
    "port": 12080,
    "secure_grpc": False,
}
CLIENT = {"client_id": "client1", "preferred_combiner": False}


class Discovery:
    """A running discovery with a hand-driven clock, and an HTTP client for it."""

    def __init__(self, **settings: object) -> None:
        self.now = 0.0
        self.metrics = Metrics()
        self.app = DiscoveryApp(DiscoverySettings(**settings), self.metrics, clock=lambda: self.now)

    async def announce(self, **changes: object) -> httpx.Response:
        return await self.http.post("/add_combiner", json={**ANNOUNCE, **changes})

    async def assign(self, **changes: object) -> httpx.Response:
        return await self.http.post("/add_client", json={**CLIENT, **changes})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Discovery]:
        server = HttpServer(self.app.app, "127.0.0.1", 0)
        await server.start()
        self.url = f"http://127.0.0.1:{server.port}"
        try:
            async with httpx.AsyncClient(base_url=self.url, trust_env=False) as self.http:
                yield self
        finally:
            await server.stop()


@pytest.fixture
async def discovery() -> AsyncIterator[Discovery]:
    async with Discovery().running() as running:
        yield running


async def test_a_combiner_of_06_is_added_without_being_told_a_secret(discovery: Discovery):
    answer = await discovery.announce()
    body = answer.json()
    assert answer.status_code == 200
    assert (body["success"], body["status"], body["message"]) == (
        True,
        "added",
        "Combiner added successfully.",
    )
    # What FEDn's combiner reads, in shape.
    assert {"storage_hostname", "storage_access_key", "storage_secret_key"} <= set(
        body["storage"]["storage_config"]
    )
    assert set(body["statestore"]["mongo_config"]) == {"username", "password", "host", "port"}
    assert body["statestore"]["network_id"]
    told = [*body["storage"]["storage_config"].values(), *body["statestore"]["mongo_config"].values()]
    assert {body["certificate"], body["key"], *told} == {None}


async def test_a_client_of_06_is_assigned(discovery: Discovery):
    await discovery.announce()
    answer = await discovery.assign()
    assert answer.status_code == 200
    assert answer.json() == {
        "success": True,
        "status": "assigned",
        "host": "gateway",
        "port": 12080,
        "fqdn": None,
        "ip": "gateway",
        "certificate": None,
        "package": "remote",
        "helper_type": "kerashelper",
        "model_type": "kerashelper",
        "client_id": "client1",
    }


async def test_what_clients_are_told_can_be_set():
    async with Discovery(helper_type="pytorchhelper", package="local").running() as discovery:
        await discovery.announce(fqdn="fl.example.org")
        body = (await discovery.assign()).json()
        assert (body["helper_type"], body["package"], body["fqdn"]) == (
            "pytorchhelper",
            "local",
            "fl.example.org",
        )


@pytest.mark.parametrize("preferred", [False, "elsewhere"])
async def test_without_a_combiner_clients_are_told_to_come_again(discovery: Discovery, preferred: object):
    answer = await discovery.assign(preferred_combiner=preferred)
    assert answer.status_code == 203
    body = answer.json()
    assert (body["success"], body["status"], body["package"]) == (False, "retry", "remote")
    assert body["message"] == body["msg"]
    assert "available yet" in body["message"]


async def test_clients_are_dealt_out_in_turn_unless_they_prefer_one(discovery: Discovery):
    for name in ("a", "b", "c"):
        await discovery.announce(combiner_id=name, address=f"host-{name}")
    turns = [(await discovery.assign()).json()["host"] for _ in range(6)]
    assert turns == ["host-a", "host-b", "host-c"] * 2
    assert {(await discovery.assign(preferred_combiner="b")).json()["host"] for _ in range(3)} == {"host-b"}


async def test_announcing_again_moves_a_combiner(discovery: Discovery):
    await discovery.announce()
    await discovery.announce(address="elsewhere", port=443)
    body = (await discovery.assign()).json()
    assert (body["host"], body["port"]) == ("elsewhere", 443)
    assert discovery.app.status() == {"combiners": {"combiner": "elsewhere:443"}}


async def test_a_combiner_that_fell_silent_is_gone(discovery: Discovery):
    await discovery.announce(combiner_id="silent")
    discovery.now = 50.0
    await discovery.announce(combiner_id="alive")
    discovery.now = 76.0
    assert (await discovery.assign(preferred_combiner="silent")).status_code == 203
    assert (await discovery.assign()).status_code == 200
    assert list(discovery.app.status()["combiners"]) == ["alive"]  # type: ignore[call-overload]
    discovery.now = 126.0
    assert (await discovery.assign()).status_code == 203


async def test_the_number_of_combiners_is_bounded(discovery: Discovery):
    for i in range(MAX_COMBINERS):
        assert (await discovery.announce(combiner_id=f"c{i}")).status_code == 200
    assert (await discovery.announce(combiner_id="one-more")).status_code == 203
    assert (await discovery.announce(combiner_id="c0")).status_code == 200
    discovery.now = 80.0
    assert (await discovery.announce(combiner_id="one-more")).status_code == 200
