"""The compose files themselves: valid, healthy, closed, and what they keep."""

from __future__ import annotations

import asyncio
import json
import subprocess

import pytest

from fedcombiner.client import OperatorClient
from fedcombiner.client.packages import PackagesClient
from fedcombiner.servicekit.errors import Unauthenticated
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.e2e.fleets import ended, fleet, seed, start
from tests.e2e.stacks import ROOT, Compose

pytestmark = [pytest.mark.needs("services"), pytest.mark.timeout(300)]

LARGEST = {"combiner-1": 160, "modelstore-1": 100, "discovery-mock": 100}
PUBLISHED = {"gateway": 12080, "discovery-mock": 8092, "prometheus": 9090}


@pytest.mark.parametrize(
    "more", [(), ("compose.demo.yml",), ("compose.tls.yml",), ("compose.demo.yml", "compose.tls.yml")]
)
async def test_the_files_are_valid_together(containers: Compose, more: tuple[str, ...]) -> None:
    overlays = [word for name in more for word in ("-f", str(ROOT / "deploy" / name))]
    await containers.do(*overlays, "--profile", "*", "config", "--quiet")


async def test_everything_is_healthy_and_only_the_ports_of_clients_and_operators_are_open(
    containers: Compose,
) -> None:
    states = {one["Service"]: one for one in await asyncio.to_thread(containers.containers)}
    for once in ("storage-setup", "operator-token"):
        assert (states[once]["State"], states[once]["ExitCode"]) == ("exited", 0)
    health = {name: one["Health"] for name, one in states.items() if one["State"] == "running"}
    assert len(health) == 9
    assert set(health.values()) == {"healthy"}, health
    ports = {name: [p for p in one["Publishers"] if p["PublishedPort"]] for name, one in states.items()}
    open_ports = {name: published[0]["TargetPort"] for name, published in ports.items() if published}
    assert open_ports == PUBLISHED


async def test_what_we_add_to_the_base_image_is_small(containers: Compose) -> None:
    services = json.loads(await containers.do("config", "--format", "json"))["services"]
    for name, megabytes in LARGEST.items():
        ours, base = services[name]["image"], services[name]["build"]["args"]["PYTHON_IMAGE"]
        added = await asyncio.to_thread(size_of, ours) - await asyncio.to_thread(size_of, base)
        assert 0 < added <= megabytes * 1_000_000, f"{ours}: {added}"


def size_of(image: str) -> int:
    """The bytes of all layers. Not `docker image inspect`, which may say how large they are compressed."""
    command = ["docker", "history", "--human=false", "--format", "{{.Size}}", image]
    return sum(map(int, subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.split()))


async def test_nobody_is_an_operator_without_the_token(containers: Compose) -> None:
    for token in ("", "fct_wrong-but-long-enough"):
        async with OperatorClient(containers.address, token=token) as stranger:
            with pytest.raises(Unauthenticated):
                await stranger.list_models()
        async with PackagesClient(containers.discovery, token=token) as packages:
            with pytest.raises(Unauthenticated):
                await packages.list()


async def test_alerts_fire_when_they_should(containers: Compose) -> None:
    await containers.do(
        "exec", "-T", "prometheus", "promtool", "test", "rules", "/etc/prometheus/alerts_test.yml"
    )


async def test_down_and_up_again_finds_everything(containers: Compose, operator: OperatorClient) -> None:
    async with fleet(containers, 2) as clients:
        await clients.wait_connected(20)
        session = await start(operator, await seed(operator, 2), 2, rounds=2)
        done = await ended(operator, session)
        assert done.state == pb.SUCCEEDED, done.reason
    models = [model.model_id for model in await operator.list_models()]
    await containers.do("down", "--remove-orphans")
    await asyncio.to_thread(containers.up)
    assert [model.model_id for model in await operator.list_models()] == models
    assert await operator.get_session(session.session_id) == done
    async with fleet(containers, 2) as clients:
        await clients.wait_connected(60)
        again = await ended(operator, await start(operator, done.model_id, 2, rounds=1))
        assert again.state == pb.SUCCEEDED, again.reason
