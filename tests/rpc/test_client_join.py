"""Joining by discovery: what is asked again, what is final, and what an assignment means."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fedcombiner.client import FederatedClient
from fedcombiner.client.errors import JoinRefused, ServerUnreachable
from fedcombiner.client.join import Assignment, join
from fedcombiner.client.trust import Trust
from fedcombiner.servicekit.backoff import Backoff
from fedcombiner.servicekit.http import HttpServer
from fedcombiner.servicekit.tls import IdentityInFiles
from tests.rpc.client_kit import FakeCombiner, fake_services, running, serving
from tests.tls_kit import Certificates

SOON = Backoff(0.01, 0.02)
ASSIGNED = {"status": "assigned", "host": "c", "port": 12080, "fqdn": None, "certificate": None}


class FakeDiscovery:
    """Answers with each of `answers` in turn, and for ever with the last."""

    def __init__(self, *answers: Response) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[dict[str, Any], str | None]] = []

    async def add_client(self, request: Request) -> Response:
        self.asked.append((await request.json(), request.headers.get("authorization")))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@asynccontextmanager
async def discovering(fake: FakeDiscovery, identity: IdentityInFiles | None = None) -> AsyncIterator[str]:
    app = Starlette(routes=[Route("/add_client", fake.add_client, methods=["POST"])])
    server = HttpServer(app, "127.0.0.1", 0, identity=identity)
    await server.start()
    try:
        yield f"{'https' if identity else 'http'}://127.0.0.1:{server.port}"
    finally:
        await server.stop()


def answer(code: int, **body: object) -> Response:
    return JSONResponse(body, code)


async def test_it_asks_as_fedns_client_does_and_waits_until_there_is_a_combiner() -> None:
    fake = FakeDiscovery(
        answer(203, status="retry", message="no combiner yet"),
        answer(200, status="retry", message="not idle"),
        Response("busy", 503),
        answer(200, **ASSIGNED),
    )
    async with discovering(fake) as url:
        assignment = await join(url, "alice", token="t", preferred_combiner="c", backoff=SOON)
    assert assignment == Assignment("c:12080", "c")
    body = {"client_id": "alice", "preferred_combiner": "c", "package": "local"}
    assert fake.asked == [(body, "Token t")] * 4


@pytest.mark.parametrize("code", [400, 401, 404])
async def test_a_refusal_is_final_and_says_why(code: int) -> None:
    fake = FakeDiscovery(answer(code, message="not you\x1b[2J"))
    async with discovering(fake) as url:
        with pytest.raises(JoinRefused, match=rf"{code} not you\\x1b"):
            await join(url, "alice", backoff=SOON)
    assert len(fake.asked) == 1


@pytest.mark.parametrize(
    "body", [{}, {**ASSIGNED, "port": "none"}, {**ASSIGNED, "certificate": "?"}, {"host": "c"}]
)
async def test_an_assignment_without_sense_is_refused(body: dict[str, object]) -> None:
    async with discovering(FakeDiscovery(answer(200, **body))) as url:
        with pytest.raises(JoinRefused, match="no sense"):
            await join(url, "alice", backoff=SOON)


async def test_a_combiner_behind_tls(certificates: Certificates) -> None:
    pem = certificates.ca_pem
    body = {**ASSIGNED, "certificate": base64.b64encode(pem).decode()}
    async with discovering(FakeDiscovery(answer(200, **body))) as url:
        assert await join(url, "a") == Assignment("c:12080", "c", Trust(pem))
        # What came over plain http may be anybody's, and this client was told whom to trust.
        assert await join(url, "a", trust=Trust()) == Assignment("c:12080", "c", Trust())
    async with discovering(FakeDiscovery(answer(200, **{**ASSIGNED, "fqdn": "example.org"}))) as url:
        assert await join(url, "a") == Assignment("example.org:443", "c", Trust())
        assert await join(url, "a", trust=Trust(pem)) == Assignment("example.org:443", "c", Trust(pem))
    async with discovering(FakeDiscovery(answer(200, **ASSIGNED))) as url:
        assert await join(url, "a", trust=Trust(pem)) == Assignment("c:12080", "c", Trust(pem))


async def test_a_certificate_that_came_over_https_is_the_one_to_believe(certificates: Certificates) -> None:
    own, trust = certificates.other_ca.read_bytes(), Trust(certificates.ca_pem)
    body = {**ASSIGNED, "certificate": base64.b64encode(own).decode()}
    identity = IdentityInFiles(certificates.good.certificate, certificates.good.key)
    async with discovering(FakeDiscovery(answer(200, **body)), identity) as url:
        assert await join(url, "a", trust=trust) == Assignment("c:12080", "c", Trust(own))


async def test_a_discovery_that_is_away_is_waited_for_no_longer_than_told() -> None:
    async with discovering(FakeDiscovery(answer(200, **ASSIGNED))) as url:
        pass
    with pytest.raises(ServerUnreachable, match=url):
        await join(url, "alice", give_up_after=0.05, backoff=SOON)


@pytest.mark.parametrize("url", ["discovery:8092", "ftp://x", "http://[::1"])
async def test_what_is_no_url_is_said(url: str) -> None:
    with pytest.raises(JoinRefused, match="not an http or https URL"):
        await asyncio.wait_for(join(url, "alice"), 5)


async def test_a_client_goes_back_to_discovery_when_its_combiner_is_gone() -> None:
    first, second = FakeCombiner(), FakeCombiner()
    async with serving(fake_services(first)) as old, serving(fake_services(second)) as new:
        fake = FakeDiscovery(*(answer(200, **ASSIGNED | _at(address)) for address in (old, new)))
        async with discovering(fake) as url:
            client = FederatedClient(
                "alice",
                train=lambda arrays, config: (arrays, 1, {}),
                discovery=url,
                heartbeat_interval=0.02,
                give_up_after=0.2,
            )
            async with running(client):
                await first.until_open("alice")
                first.errors["SendHeartbeat"] = [grpc.StatusCode.UNAVAILABLE] * 10_000
                await second.until_open("alice")
    assert len(fake.asked) == 2


def _at(address: str) -> dict[str, object]:
    host, _, port = address.rpartition(":")
    return {"host": host, "port": int(port)}
