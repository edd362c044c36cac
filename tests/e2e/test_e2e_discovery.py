"""Finding the combiner, and what clients run: discovery, as clients, combiners and operators see it."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

import httpx
import pytest

from fedcombiner.client import OperatorClient
from fedcombiner.client.errors import ServerUnreachable
from fedcombiner.client.join import join
from fedcombiner.client.packages import PackagesClient
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.e2e.fleets import ended, fleet, seed, start
from tests.e2e.stacks import Compose, Stack
from tests.packages_kit import archive_of

# A combiner that discovery has forgotten announces itself within 30 s.
FOUND_S = 60.0
# What clients of 0.5, 0.6 to 0.20, and 0.21 and later ask for their package and its checksum.
FETCHES = [
    ("/context", "/checksum"),
    ("//download_package", "//get_package_checksum"),
    ("/api/v1/packages/download", "/api/v1/packages/checksum"),
]


def package(directory: Path) -> Path:
    """An archive that is there only once."""
    path = directory / "package.tar.gz"
    path.write_bytes(archive_of(f"print({uuid.uuid4().hex!r})".encode()))
    return path


async def fetched(stack: Stack, path: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.get(stack.discovery + path)


async def test_a_client_finds_the_combiner_and_one_that_asks_for_nonsense_is_told(stack: Stack) -> None:
    found = await join(stack.discovery, "e2e-looking", give_up_after=FOUND_S)
    assert found.address == stack.address
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.post(f"{stack.discovery}//add_client", json={"client_id": "e2e", "shoe_size": 44})
    assert answer.status_code == 400
    assert "shoe_size" in answer.text


@pytest.mark.needs("script")
async def test_a_client_that_is_told_to_come_again_does(stack: Stack) -> None:
    await stack.script({"request": "client", "answer": "retry", "times": 2})
    found = await join(stack.discovery, "e2e-waiting", give_up_after=FOUND_S)
    assert found.address == stack.address
    assert await stack.scripted() == []


# Not on a stack that somebody uses: its clients would be given this package.
@pytest.mark.needs("script")
async def test_clients_of_every_generation_get_the_package_that_the_operator_chose(
    stack: Stack, tmp_path: Path
) -> None:
    archive = package(tmp_path)
    async with PackagesClient(stack.discovery, token=stack.token) as packages:
        put = await packages.put(archive, "e2e")
        assert put["id"] == hashlib.sha256(archive.read_bytes()).hexdigest()
        await packages.activate(put["id"])
        assert [row["id"] for row in await packages.list() if row["active"]] == [put["id"]]
    for download, checksum in FETCHES:
        assert (await fetched(stack, download)).content == archive.read_bytes()
        assert (await fetched(stack, checksum)).json()["checksum"] == put["id"]


@pytest.mark.needs("services")
@pytest.mark.timeout(300)
async def test_combiners_that_are_told_to_announce_later_are_taken_then_and_serve_meanwhile(
    containers: Compose, operator: OperatorClient
) -> None:
    await containers.do("stop", "combiner-1", "combiner-2")
    # It knows none, and hears of none for as long as its script says so.
    await containers.do("restart", "discovery-mock")
    await containers.do("up", "--detach", "--no-build", "--no-deps", "--wait", "discovery-mock")
    await containers.script({"request": "combiner", "answer": "retry", "times": 1000})
    await containers.do("start", "combiner-1", "combiner-2")
    async with fleet(containers, 2) as clients:
        await clients.wait_connected(60)
        done = await ended(operator, await start(operator, await seed(operator, 2), 2, rounds=1))
        assert done.state == pb.SUCCEEDED, done.reason
        left = await containers.scripted()
        assert [rule["answer"] for rule in left] == ["retry"]
        with pytest.raises(ServerUnreachable, match="No combiner is available"):
            await join(containers.discovery, "e2e-early", give_up_after=0)
    await containers.script({"request": "combiner", "answer": "retry"})
    found = await join(containers.discovery, "e2e-early", give_up_after=FOUND_S)
    assert found.address == containers.address
    assert await containers.scripted() == []


@pytest.mark.needs("services")
@pytest.mark.timeout(300)
async def test_a_discovery_that_was_restarted_knows_combiners_and_packages_again(
    containers: Compose, tmp_path: Path
) -> None:
    archive = package(tmp_path)
    async with PackagesClient(containers.discovery, token=containers.token) as packages:
        put = await packages.put(archive, "kept")
        await packages.activate(put["id"])
        await containers.do("restart", "discovery-mock")
        found = await join(containers.discovery, "e2e-later", give_up_after=FOUND_S)
        assert found.address == containers.address
        assert [row["id"] for row in await packages.list() if row["active"]] == [put["id"]]
        assert (await packages.get(put["id"], tmp_path / "back"))["name"] == "kept"
    assert (tmp_path / "back").read_bytes() == archive.read_bytes()
