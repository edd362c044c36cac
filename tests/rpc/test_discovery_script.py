"""Scripted answers, set at the port of operations, and what combiners and clients make of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from combiner.announce import Announcer, Status
from starlette.applications import Starlette

from fedcombiner.client.errors import JoinRefused
from fedcombiner.client.join import join
from fedcombiner.servicekit.backoff import Backoff
from fedcombiner.servicekit.errors import StartupError
from fedcombiner.servicekit.http import HttpServer
from tests.rpc.discovery_kit import Discovery

QUICK = Backoff(0.001, 0.005)


class Stage(Discovery):
    """A discovery whose answers can be scripted; `private` is a client for its port of operations."""

    private: httpx.AsyncClient

    async def script(self, *rules: dict[str, object]) -> httpx.Response:
        answer = await self.private.put("/script", json={"rules": rules})
        assert answer.status_code == 200, answer.text
        return answer

    async def left(self) -> object:
        return (await self.private.get("/script")).json()["rules"]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path, package="local")
    operations = HttpServer(Starlette(routes=stage.app.script.routes), "127.0.0.1", 0)
    await operations.start()
    url = f"http://127.0.0.1:{operations.port}"
    async with (
        stage.running(),
        httpx.AsyncClient(base_url=url, trust_env=False, verify=False) as stage.private,
    ):
        yield stage  # type: ignore[misc]
    await operations.stop()


def announcer(stage: Stage) -> Announcer:
    return Announcer(stage.url, "combiner", "gateway:12080", retries=QUICK, interval=0.001)


STATUSES = [
    ("retry", Status.TryAgain, "this answer is scripted"),
    ("401", Status.UnAuthorized, "this answer is scripted"),
    ("400", Status.UnMatchedConfig, "this answer is scripted"),
    ("500", Status.Unassigned, "this answer is scripted"),
    ("cut", Status.Unassigned, "peer closed connection"),
    ("slow", Status.Assigned, ""),
]


@pytest.mark.parametrize(("answer", "status", "message"), STATUSES, ids=[row[0] for row in STATUSES])
async def test_what_a_combiner_makes_of_each_answer(
    stage: Stage, answer: str, status: Status, message: str
) -> None:
    await stage.script({"request": "combiner", "answer": answer, "seconds": 0.05})
    found = await announcer(stage).announce()
    assert found.status is status
    assert found.message.startswith(message)
    assert (await announcer(stage).announce()).status is Status.Assigned, "the script is used up"


async def test_a_slow_answer_is_given_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("combiner.announce.TIMEOUT_S", 0.05)
    await stage.script({"answer": "slow", "seconds": 0.4})
    found = await announcer(stage).announce()
    assert (found.status, found.message) == (Status.Unassigned, "TimeoutError")


async def test_a_combiner_starts_through_trouble_and_stops_at_a_refusal(stage: Stage) -> None:
    trouble = [{"request": "combiner", "answer": answer} for answer in ("500", "cut", "retry")]
    await stage.script(*trouble, {"request": "combiner", "answer": "retry", "times": 2})
    async with asyncio.timeout(10):
        assert (await announcer(stage).first()).status is Status.Assigned
    assert await stage.left() == []
    await stage.script({"request": "combiner", "answer": "retry", "times": 3}, {"answer": "401"})
    with pytest.raises(StartupError, match="refuses this combiner: this answer is scripted; DISCOVERY_TOKEN"):
        await announcer(stage).run()


async def test_a_client_waits_through_trouble_and_stops_at_a_refusal(stage: Stage) -> None:
    await stage.announce()
    trouble = [{"request": "client", "answer": answer} for answer in ("500", "cut", "retry")]
    await stage.script(*trouble, {"request": "client", "answer": "slow", "seconds": 0.01})
    assert (await join(stage.url, "c1", backoff=QUICK)).address == "gateway:12080"
    assert await stage.left() == []
    for answer in ("400", "401"):
        await stage.script({"request": "client", "answer": answer})
        with pytest.raises(JoinRefused, match="this answer is scripted"):
            await join(stage.url, "c1", backoff=QUICK)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("client", "/assign?name=c1"),
        ("package", "//download_package"),
        ("package", "/context"),
        ("checksum", "/api/v1/packages/checksum"),
        ("config", "/get_client_config"),
    ],
)
async def test_each_request_has_its_own_rules(stage: Stage, kind: str, path: str) -> None:
    others = {"client", "package", "checksum", "config"} - {kind}
    await stage.script(
        *({"request": other, "answer": "500"} for other in sorted(others)),
        {"request": kind, "answer": "401", "times": 2},
    )
    url = stage.url + path
    codes = [(await stage.http.get(url)).status_code for _ in range(3)]
    assert codes[:2] == [401, 401]
    assert codes[2] not in (401, 500)


async def test_rules_can_be_shown_and_cleared(stage: Stage) -> None:
    await stage.script({"request": "client", "answer": "retry", "times": 3})
    await stage.assign()
    rule = {"request": "client", "answer": "retry", "times": 2, "seconds": 5.0}
    assert await stage.left() == [rule]
    assert (await stage.private.delete("/script")).json() == {"rules": []}
    assert (await stage.assign()).json()["message"] == "No combiner is available yet."


async def test_packages_of_operators_are_not_scripted(stage: Stage) -> None:
    await stage.script({"request": "any", "answer": "500", "times": 100})
    await stage.put_package()
    assert (await stage.assign()).status_code == 500


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "the body is not JSON"),
        (b'{"rules": ' * 1600, "the body is not JSON"),
        (b"[]", "the body cannot be"),
        ({}, "rules cannot be {}"),
        ({"rules": [{}]}, "rules.0.answer cannot be"),
        ({"rules": [{"answer": "maybe"}]}, "rules.0.answer cannot be 'maybe'"),
        ({"rules": [{"answer": "401", "times": 0}]}, "rules.0.times cannot be 0"),
        ({"rules": [{"answer": "slow", "seconds": -1}]}, "rules.0.seconds cannot be -1"),
        ({"rules": [{"answer": "401", "request": "all"}]}, "rules.0.request"),
        ({"rules": [{"answer": "401", "path": "/"}]}, "rules.0.path cannot be '/'"),
        ({"rules": [{"answer": "401"}] * 101}, "rules cannot be"),
    ],
    ids=range(11),
)
async def test_a_script_that_makes_no_sense(stage: Stage, body: object, says: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await stage.private.put("/script", content=data)
    assert answer.status_code == 400
    assert says in answer.json()["message"]
    assert await stage.left() == []
