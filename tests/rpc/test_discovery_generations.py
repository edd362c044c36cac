"""What clients of every generation ask, in their own way, and that they can read the answer."""

from __future__ import annotations

import base64
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedcombiner.modelstorage.disk import DiskStore
from tests.rpc.discovery_kit import Discovery
from tests.tls_kit import Certificates

UUID = "0b1f6f0e-7d2b-4a47-9f0a-2d6f3f8f8a10"
Ask = Callable[[Discovery], Coroutine[Any, Any, httpx.Response]]


def get_assign(discovery: Discovery) -> Coroutine[Any, Any, httpx.Response]:
    return discovery.http.get("/assign", params={"name": "c1"}, headers={"Authorization": "Token None"})


def post(path: str, scheme: str, **body: object) -> Ask:
    headers = {"Authorization": f"{scheme} t0k"}
    return lambda discovery: discovery.http.post(discovery.url + path, json=body, headers=headers)


OLD, NEW = "kerashelper", "numpyhelper"
# Release, what it sends, the helper that it can import, the client_id that it must get back.
GENERATIONS: list[tuple[str, Ask, str, str]] = [
    ("0.5", get_assign, OLD, "c1"),
    ("0.6 to 0.8", post("/add_client", "Token", client_id="c1", preferred_combiner=False), OLD, "c1"),
    ("0.9", post("/add_client", "Bearer", client_id="c1", preferred_combiner=None), NEW, "c1"),
    ("0.11", post("/add_client", "Token", name="c1", client_id=UUID, preferred_combiner=""), NEW, UUID),
    ("0.14", post("/add_client", "Bearer", name="c1", client_id=UUID, package="remote"), NEW, UUID),
    ("0.20 v2", post("//add_client", "Bearer", name="c1", client_id=UUID, package="remote"), NEW, UUID),
    ("0.21", post("/api/v1/clients/add", "Bearer", name="c1", client_id=UUID, package="remote"), NEW, UUID),
    ("0.33", post("//api/v1/clients/add", "Bearer", name="c1", client_id=UUID, package="remote"), NEW, UUID),
]
each_generation = pytest.mark.parametrize(
    ("ask", "helper", "client_id"), [row[1:] for row in GENERATIONS], ids=[row[0] for row in GENERATIONS]
)


@pytest.fixture
async def discovery(tmp_path: Path) -> AsyncIterator[Discovery]:
    async with Discovery(tmp_path).running() as running:
        yield running


def assert_told_to_come_again(answer: httpx.Response, why: str) -> None:
    body = answer.json()
    assert (answer.status_code, body["success"], body["status"]) == (203, False, "retry")
    assert why in body["message"]
    assert body["msg"] == body["message"]
    assert body["package"] == "remote"


@each_generation
async def test_it_is_assigned(discovery: Discovery, ask: Ask, helper: str, client_id: str) -> None:
    await discovery.announce()
    await discovery.put_package()
    answer = await ask(discovery)
    assert answer.status_code == 200
    body = answer.json()
    assert (body["status"], body["host"], body["port"]) == ("assigned", "gateway", 12080)
    assert (body["helper_type"], body["model_type"]) == (helper, helper)
    assert (body["client_id"], body["package"], body["ip"]) == (client_id, "remote", "gateway")
    # 0.5 knows only the text, the others only null.
    assert body["fqdn"] == ("None" if ask is get_assign else None)


@each_generation
async def test_it_waits_for_a_combiner_and_for_a_package(
    discovery: Discovery, ask: Ask, helper: str, client_id: str
) -> None:
    assert_told_to_come_again(await ask(discovery), "No compute package is set yet")
    await discovery.announce()
    assert_told_to_come_again(await ask(discovery), "No compute package is set yet")
    await discovery.put_package()
    assert (await ask(discovery)).status_code == 200
    discovery.now += 91
    assert_told_to_come_again(await ask(discovery), "No combiner is available yet")


@each_generation
async def test_it_waits_for_the_object_store(tmp_path: Path, ask: Ask, helper: str, client_id: str) -> None:
    store = DiskStore(tmp_path / "store")
    async with Discovery(tmp_path, store=store).running(start_store=False) as discovery:
        await discovery.announce()
        assert_told_to_come_again(await ask(discovery), "cannot be looked up now")
        await store.start()
        discovery.now += 6
        await discovery.announce()
        assert_told_to_come_again(await ask(discovery), "No compute package is set yet")


@each_generation
async def test_a_name_may_have_a_helper_of_its_own(
    tmp_path: Path, ask: Ask, helper: str, client_id: str
) -> None:
    by_name = {"c1": "androidhelper", "c2": "kerashelper"}
    async with Discovery(tmp_path, helper_by_name=by_name).running() as discovery:
        await discovery.announce()
        await discovery.put_package()
        assert (await ask(discovery)).json()["helper_type"] == "androidhelper"


@each_generation
async def test_a_combiner_behind_an_ingress(
    discovery: Discovery, ask: Ask, helper: str, client_id: str
) -> None:
    await discovery.announce(fqdn="fl.example.org", secure_grpc=True)
    await discovery.put_package()
    body = (await ask(discovery)).json()
    assert (body["fqdn"], body["certificate"]) == ("fl.example.org", None)


@each_generation
async def test_whom_to_trust_at_a_combiner_that_speaks_tls(
    tmp_path: Path, certificates: Certificates, ask: Ask, helper: str, client_id: str
) -> None:
    async with Discovery(tmp_path, combiner_ca_file=certificates.ca).running() as discovery:
        await discovery.put_package()
        await discovery.announce()
        assert (await ask(discovery)).json()["certificate"] is None
        await discovery.announce(secure_grpc=True)
        told = (await ask(discovery)).json()["certificate"]
        assert base64.b64decode(told) == certificates.ca_pem


async def test_a_client_without_an_id_gets_one(discovery: Discovery) -> None:
    await discovery.announce()
    for body in ({"name": "c1", "package": "local"}, {"name": "c1", "package": "local", "client_id": None}):
        answer = await discovery.http.post("/api/v1/clients/add", json=body)
        assert uuid.UUID(answer.json()["client_id"])


async def test_a_client_that_brings_its_package_needs_none_here(discovery: Discovery) -> None:
    await discovery.announce()
    body = {"name": "c1", "client_id": UUID, "package": "local"}
    for path in ("/add_client", "/api/v1/clients/add"):
        answer = await discovery.http.post(path, json=body)
        assert (answer.status_code, answer.json()["package"]) == (200, "local")


async def test_clients_that_cannot_say_so_follow_the_setting(tmp_path: Path) -> None:
    async with Discovery(tmp_path, package="local").running() as discovery:
        await discovery.announce()
        for ask in (get_assign, GENERATIONS[1][1]):
            answer = await ask(discovery)
            assert (answer.status_code, answer.json()["package"]) == (200, "local")


async def test_the_preferred_combiner_in_the_words_of_each_generation(discovery: Discovery) -> None:
    await discovery.put_package()
    for name in ("a", "b"):
        await discovery.announce(combiner_id=name, address=f"host-{name}")
    asked = [
        await discovery.http.get("/assign", params={"name": "c1", "combiner": "b"}),
        await discovery.http.post("/add_client", json={"client_id": "c2", "preferred_combiner": "b"}),
        await discovery.http.post("/api/v1/clients/add", json={"name": "c3", "preferred_combiner": "b"}),
        await discovery.http.post("/api/v1/clients/add", json={"name": "c4", "combiner_preferred": "b"}),
    ]
    assert [answer.json()["host"] for answer in asked] == ["host-b"] * 4


@pytest.fixture
async def ready(discovery: Discovery) -> Discovery:
    await discovery.announce()
    await discovery.put_package()
    return discovery


async def told(discovery: Discovery) -> str:
    return str((await discovery.assign()).json()["helper_type"])


async def test_a_client_that_comes_again_without_a_stream_gets_the_other_helper(ready: Discovery) -> None:
    assert await told(ready) == OLD
    ready.now += 3
    assert await told(ready) == NEW, "it must be one of 0.8"
    ready.now += 100
    await ready.announce()
    ready.witness.heard["client1"] = 50.0
    assert [await told(ready), await told(ready)] == [NEW, OLD], "heard of since the one, not since the other"


async def test_a_client_that_had_a_stream_keeps_its_helper(ready: Discovery) -> None:
    assert await told(ready) == OLD
    for _ in range(3):
        ready.now += 30
        await ready.announce()
        ready.witness.heard["client1"] = 10.0
        assert await told(ready) == OLD
    assert ready.witness.asked == [("combiner", "client1")] * 3


async def test_others_are_not_asked_about(ready: Discovery) -> None:
    for row in (GENERATIONS[0], *GENERATIONS[2:]):
        for _ in range(2):
            assert (await row[1](ready)).json()["helper_type"] == row[2]
    assert ready.witness.asked == []


async def test_old_clients_may_be_of_another_framework(tmp_path: Path) -> None:
    async with Discovery(tmp_path, helper_old="pytorchhelper").running() as discovery:
        await discovery.announce()
        await discovery.put_package()
        assert [await told(discovery), await told(discovery)] == ["pytorchhelper", "numpyhelper"]
