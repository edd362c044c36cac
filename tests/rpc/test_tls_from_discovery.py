"""A combiner that serves TLS with what its discovery hands out, over real https."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from combiner.announce import Announcer
from combiner.announced_tls import announced_identity
from combiner.app import serve
from combiner.settings import CombinerSettings
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from fedcombiner.client import OperatorClient, Trust
from fedcombiner.servicekit.backoff import Backoff
from fedcombiner.servicekit.certificates import KeyPair
from fedcombiner.servicekit.errors import StartupError
from fedcombiner.servicekit.http import HttpServer
from fedcombiner.servicekit.lifecycle import Stop
from fedcombiner.servicekit.settings import InvalidSettings
from fedcombiner.servicekit.tls import IdentityInFiles, trust_context
from tests.contract.state_kit import Server
from tests.tls_kit import Certificates, PairFiles

DEADLINE = 20.0
QUICK = Backoff(0.001, 0.002)


class Discovery:
    """Answers announcements with each of `answers` in turn, and for ever with the last; or redirects them."""

    def __init__(self, *answers: Response, redirect: str = "") -> None:
        self.answers = list(answers)
        self.redirect = redirect
        self.asked: list[dict[str, Any]] = []
        self.tokens: set[str | None] = set()

    async def add_combiner(self, request: Request) -> Response:
        if self.redirect:
            return RedirectResponse(self.redirect, 307)
        self.asked.append(await request.json())
        self.tokens.add(request.headers.get("authorization"))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    @asynccontextmanager
    async def serving(self, files: PairFiles | None) -> AsyncIterator[str]:
        app = Starlette(routes=[Route("/add_combiner", self.add_combiner, methods=["POST"])])
        identity = files and IdentityInFiles(files.certificate, files.key)
        server = HttpServer(app, "127.0.0.1", 0, identity=identity)
        await server.start()
        try:
            yield f"{'https' if files else 'http'}://127.0.0.1:{server.port}"
        finally:
            await server.stop()


def added(pair: KeyPair | None) -> Response:
    return JSONResponse({"status": "added", **(pair.as_announcement() if pair else {"certificate": None})})


def announcer(url: str, certificates: Certificates) -> Announcer:
    trust = trust_context(certificates.ca, "CA")
    return Announcer(url, "combiner", "gateway:1", trust=trust, interval=0.001, retries=QUICK)


async def test_a_combiner_is_served_with_the_announced_pair(
    certificates: Certificates, redis_server: Server, tmp_path: Path
) -> None:
    later = JSONResponse({"status": "retry", "message": "not idle"}, 203)
    discovery = Discovery(Response("down", 503), later, added(certificates.good.pair()))
    stop, ports = Stop(), asyncio.get_running_loop().create_future()
    async with discovery.serving(certificates.good) as url:
        settings = CombinerSettings(
            host="127.0.0.1",
            port=0,
            metrics_host="127.0.0.1",
            metrics_port=0,
            data=tmp_path / "models",
            scratch=tmp_path / "scratch",
            redis_url=redis_server.url,
            advertise="gateway:12080",
            discovery_url=url,
            discovery_token="secret",
            discovery_ca_file=certificates.ca,
            tls_from_discovery=True,
        )
        task = asyncio.create_task(serve(settings, stop, lambda port, _: ports.set_result(port)))
        await asyncio.wait({task, ports}, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        trust = Trust(certificates.ca_pem)
        async with OperatorClient(f"localhost:{ports.result()}", trust=trust, patience=10) as operator:
            assert (await operator.report())["name"] == "combiner"
        stop.set("end of the test")
        await asyncio.wait_for(task, DEADLINE)
    assert discovery.asked[0]["secure_grpc"] is True
    assert discovery.tokens == {"Token secret"}


async def test_a_later_answer_renews_the_pair_and_one_without_keeps_it(certificates: Certificates) -> None:
    first, second = certificates.good.pair(), certificates.issue("announced").pair()
    discovery = Discovery(added(first), added(None), added(second))
    async with discovery.serving(certificates.good) as url:
        announcing = announcer(url, certificates)
        identity = await announced_identity(announcing)
        assert identity.pair() == first
        renewed = asyncio.Event()
        identity.follow(lambda pair: renewed.set())
        task = asyncio.create_task(announcing.run())
        await asyncio.wait_for(renewed.wait(), DEADLINE)
        task.cancel()
    assert identity.pair() == second
    assert len(discovery.asked) >= 3


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (added(None), "the answer has no certificate; the discovery has to be given a certificate"),
        (JSONResponse({"status": "added", "certificate": "?", "key": "?"}), "is not base64"),
        (JSONResponse({"message": "who are you"}, 401), "the discovery refused this combiner: who are you"),
        (JSONResponse({"message": "port is missing"}, 400), "refused this combiner: port is missing"),
    ],
)
async def test_what_no_waiting_could_change_ends_the_start(
    certificates: Certificates, answer: Response, reason: str
) -> None:
    async with Discovery(answer).serving(certificates.good) as url:
        with pytest.raises(StartupError, match=f"^TLS_FROM_DISCOVERY=true: .*{reason}"):
            await asyncio.wait_for(announced_identity(announcer(url, certificates)), DEADLINE)


async def test_a_key_that_came_over_http_is_not_used(certificates: Certificates) -> None:
    plain = Discovery(added(certificates.good.pair()))
    async with plain.serving(None) as http:
        detour = Discovery(redirect=f"{http}/add_combiner")
        async with detour.serving(certificates.good) as https:
            for url in (http, https):
                with pytest.raises(StartupError, match="did not come over https"):
                    await asyncio.wait_for(announced_identity(announcer(url, certificates)), DEADLINE)


@pytest.mark.parametrize("kind", ["expired", "wrong_name", "unknown"])
async def test_a_discovery_that_is_not_to_be_believed_gets_no_announcement(
    certificates: Certificates, kind: str
) -> None:
    discovery = Discovery(added(certificates.good.pair()))
    async with discovery.serving(getattr(certificates, kind)) as url:
        answer = await announcer(url, certificates).announce()
    assert answer.status == 0
    assert "CERTIFICATE_VERIFY_FAILED" in answer.message
    assert discovery.asked == []


@pytest.mark.parametrize(
    ("others", "complaint"),
    [
        ({}, "TLS_FROM_DISCOVERY=true needs an https DISCOVERY_URL"),
        ({"discovery_url": "http://d:1"}, "TLS_FROM_DISCOVERY=true needs an https DISCOVERY_URL"),
        (
            {"discovery_url": "https://d:1", "tls_cert_file": "c", "tls_key_file": "k"},
            "either TLS_FROM_DISCOVERY=true or TLS_CERT_FILE",
        ),
    ],
)
def test_settings_that_do_not_fit(others: dict[str, str], complaint: str) -> None:
    with pytest.raises(InvalidSettings, match=complaint):
        CombinerSettings.load(tls_from_discovery=True, **others)


@pytest.mark.parametrize(
    ("settings", "secure"),
    [
        ({}, False),
        ({"advertise_tls": True}, True),
        ({"tls_from_discovery": True, "discovery_url": "https://d:1"}, True),
        ({"tls_cert_file": "c", "tls_key_file": "k"}, True),
    ],
)
def test_what_is_announced(settings: dict[str, Any], secure: bool) -> None:
    assert CombinerSettings(**settings).advertises_tls is secure
