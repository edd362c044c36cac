"""The discovery over real HTTP: what combiners and clients of FEDn send, and what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from discovery_mock.app import MAX_BODY_BYTES, DiscoveryApp, serve
from discovery_mock.settings import DiscoverySettings

from fedcombiner.client.join import join
from fedcombiner.servicekit.http import HttpServer
from fedcombiner.servicekit.lifecycle import Stop
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
    assert discovery.app.status() == {"combiners": {"alive": "gateway:12080"}}
    discovery.now = 126.0
    assert (await discovery.assign()).status_code == 203


async def test_the_number_of_combiners_is_bounded(discovery: Discovery, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("discovery_mock.registry.MAX_COMBINERS", 2)
    for name in ("a", "b"):
        assert (await discovery.announce(combiner_id=name)).status_code == 200
    answer = await discovery.announce(combiner_id="c")
    assert (answer.status_code, answer.json()["status"]) == (203, "retry")
    assert (await discovery.announce(combiner_id="a")).status_code == 200


@pytest.mark.parametrize("path", ["//add_client", "/add_client", "///add_client"])
async def test_slashes_are_taken_as_one(discovery: Discovery, path: str):
    await discovery.announce()
    url = discovery.url + path
    assert (await discovery.http.post(url, json=CLIENT)).json()["status"] == "assigned"


async def test_a_request_that_can_never_be_right_names_the_key(discovery: Discovery):
    for answer in (await discovery.announce(port="12080"), await discovery.announce(port=0)):
        assert answer.status_code == 400
        assert answer.json()["success"] is False
        assert answer.json()["message"].startswith("port cannot be ")
    assert (await discovery.http.post("/add_client", json={})).json()["message"] == "client_id is missing"
    assert (await discovery.assign()).status_code == 203


async def test_a_client_of_011_is_known_by_its_name_and_keeps_its_id(discovery: Discovery):
    await discovery.announce()
    answer = await discovery.assign(name="client1", client_id="0b1f6f0e-7d2b-4a47", package="local")
    assert answer.json()["client_id"] == "0b1f6f0e-7d2b-4a47"


async def test_a_body_that_is_too_large_is_not_read(discovery: Discovery):
    answer = await discovery.http.post("/add_client", content=b" " * (MAX_BODY_BYTES + 1))
    assert answer.status_code == 413
    assert "16384 bytes" in answer.json()["message"]


@pytest.mark.parametrize(("method", "path", "code"), [("GET", "/add_client", 405), ("POST", "/nowhere", 404)])
async def test_other_requests_are_refused_in_json(discovery: Discovery, method: str, path: str, code: int):
    answer = await discovery.http.request(method, path)
    assert answer.status_code == code
    assert answer.json()["success"] is False


async def test_answers_are_counted(discovery: Discovery):
    await discovery.assign()
    await discovery.announce()
    await discovery.announce(port=0)
    value = discovery.metrics.registry.get_sample_value
    name = "fedcombiner_discovery_answers_total"
    assert value(name, {"request": "add_client", "outcome": "retry"}) == 1
    assert value(name, {"request": "add_combiner", "outcome": "ok"}) == 1
    assert value(name, {"request": "add_combiner", "outcome": "refused"}) == 1
    assert value("fedcombiner_discovery_combiners") == 1


async def test_our_own_client_library_joins_by_it(discovery: Discovery):
    await discovery.announce()
    assert (await join(discovery.url, "client1")).address == "gateway:12080"


async def test_the_process_serves_both_ports_until_it_is_stopped():
    stop, ports = Stop(), asyncio.get_running_loop().create_future()
    settings = DiscoverySettings(host="127.0.0.1", port=0, metrics_host="127.0.0.1", metrics_port=0)
    running = asyncio.create_task(serve(settings, stop, lambda *found: ports.set_result(found)))
    async with asyncio.timeout(20), httpx.AsyncClient(trust_env=False) as http:
        port, metrics_port = await ports
        added = await http.post(f"http://127.0.0.1:{port}/add_combiner", json=ANNOUNCE)
        assert added.status_code == 200
        private = f"http://127.0.0.1:{metrics_port}"
        assert (await http.get(f"{private}/readyz")).status_code == 200
        status = (await http.get(f"{private}/statusz")).json()
        assert status["discovery"] == {"combiners": {"combiner": "gateway:12080"}}
        assert "fedcombiner_discovery_combiners 1.0" in (await http.get(f"{private}/metrics")).text
        # What is private stays off the public port.
        assert (await http.get(f"http://127.0.0.1:{port}/metrics")).status_code == 404
        stop.set("test is over")
        await running
