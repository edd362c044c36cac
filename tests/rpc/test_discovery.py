"""The discovery over real HTTP: combiners that announce themselves, and the clients they get."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from discovery_mock.app import serve
from discovery_mock.settings import DiscoverySettings

from fedcombiner.client.join import join
from fedcombiner.servicekit.lifecycle import Stop
from tests.rpc.discovery_kit import ANNOUNCE, CLIENT, Discovery


@pytest.fixture
async def discovery(tmp_path: Path) -> AsyncIterator[Discovery]:
    async with Discovery(tmp_path, package="local").running() as running:
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
        "package": "local",
        "helper_type": "kerashelper",
        "model_type": "kerashelper",
        "client_id": "client1",
    }


@pytest.mark.parametrize("preferred", [False, "elsewhere"])
async def test_without_a_combiner_clients_are_told_to_come_again(discovery: Discovery, preferred: object):
    answer = await discovery.assign(preferred_combiner=preferred)
    assert answer.status_code == 203
    body = answer.json()
    assert (body["success"], body["status"], body["package"]) == (False, "retry", "local")
    assert body["message"] == body["msg"]
    assert "available yet" in body["message"]


async def test_clients_are_spread_and_a_preferred_combiner_is_honoured(discovery: Discovery):
    for name in ("a", "b", "c"):
        await discovery.announce(combiner_id=name, address=f"host-{name}")
    found = [(await discovery.assign(client_id=f"client{i}")).json()["host"] for i in range(6)]
    assert found == ["host-a", "host-b", "host-c"] * 2
    preferring = [await discovery.assign(client_id=f"p{i}", preferred_combiner="b") for i in range(3)]
    assert {answer.json()["host"] for answer in preferring} == {"host-b"}


async def test_loads_are_compared_as_numbers(discovery: Discovery):
    await discovery.announce(combiner_id="a", address="host-a", load={"active-clients": 10})
    await discovery.announce(combiner_id="b", address="host-b", load={"active-clients": 9})
    assert (await discovery.assign()).json()["host"] == "host-b"


async def test_a_full_combiner_gets_nobody(discovery: Discovery):
    full = {"active-clients": 5, "max-clients": 5}
    await discovery.announce(combiner_id="a", load=full)
    for preferred, said in ((False, "No combiner has room now."), ("a", "Combiner a has no room now.")):
        answer = await discovery.assign(preferred_combiner=preferred)
        assert (answer.status_code, answer.json()["message"]) == (203, said)
    await discovery.announce(combiner_id="a", load={**full, "active-clients": 4})
    assert (await discovery.assign()).status_code == 200
    another = await discovery.assign(client_id="another")
    assert another.status_code == 200, "a name that was asked for is no proof of a client"
    await discovery.announce(combiner_id="a", load=full)
    assert (await discovery.assign(client_id="third")).status_code == 203


async def test_announcing_again_moves_a_combiner(discovery: Discovery):
    await discovery.announce()
    await discovery.announce(address="elsewhere", port=443, load={"active-clients": 3})
    body = (await discovery.assign()).json()
    assert (body["host"], body["port"]) == ("elsewhere", 443)
    assert discovery.app.status() == {"combiners": {"combiner": {"address": "elsewhere:443", "clients": 4}}}


async def test_a_combiner_that_fell_silent_is_gone(discovery: Discovery):
    await discovery.announce(combiner_id="silent")
    discovery.now = 60.0
    await discovery.announce(combiner_id="alive")
    discovery.now = 90.0
    assert (await discovery.assign(preferred_combiner="silent")).status_code == 200
    discovery.now = 90.1
    assert (await discovery.assign(preferred_combiner="silent")).status_code == 203
    assert (await discovery.assign()).status_code == 200
    assert list(discovery.app.status()["combiners"]) == ["alive"]  # type: ignore[call-overload]
    discovery.now = 151.0
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


async def test_answers_and_combiners_are_counted(discovery: Discovery):
    await discovery.assign()
    await discovery.announce()
    await discovery.announce(port=0)
    value = discovery.metrics.registry.get_sample_value
    name = "fedcombiner_discovery_answers_total"
    assert value(name, {"request": "add_client", "outcome": "retry"}) == 1
    assert value(name, {"request": "add_combiner", "outcome": "ok"}) == 1
    assert value(name, {"request": "add_combiner", "outcome": "refused"}) == 1
    assert value("fedcombiner_discovery_combiners") == 1


async def test_our_own_client_library_joins_without_a_package(tmp_path: Path):
    async with Discovery(tmp_path).running() as discovery:
        await discovery.announce()
        assert (await discovery.assign()).status_code == 203
        assert (await join(discovery.url, "client1")).address == "gateway:12080"


async def test_the_process_serves_both_ports_until_it_is_stopped(tmp_path: Path):
    stop, ports = Stop(), asyncio.get_running_loop().create_future()
    settings = DiscoverySettings(
        host="127.0.0.1",
        port=0,
        metrics_host="127.0.0.1",
        metrics_port=0,
        data=tmp_path / "packages",
        scratch=tmp_path / "scratch",
    )
    running = asyncio.create_task(serve(settings, stop, lambda *found: ports.set_result(found)))
    async with asyncio.timeout(20), httpx.AsyncClient(trust_env=False) as http:
        port, metrics_port = await ports
        added = await http.post(f"http://127.0.0.1:{port}/add_combiner", json=ANNOUNCE)
        assert added.status_code == 200
        private = f"http://127.0.0.1:{metrics_port}"
        assert (await http.get(f"{private}/readyz")).status_code == 200
        status = (await http.get(f"{private}/statusz")).json()
        assert status["discovery"] == {"combiners": {"combiner": {"address": "gateway:12080", "clients": 0}}}
        assert "fedcombiner_discovery_combiners 1.0" in (await http.get(f"{private}/metrics")).text
        # What is private stays off the public port.
        for path in ("/metrics", "/script", "/statusz"):
            assert (await http.get(f"http://127.0.0.1:{port}{path}")).status_code == 404
        stop.set("test is over")
        await running
