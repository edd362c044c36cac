"""The combiner's announcements, against the real discovery and against answers that it would never give."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from combiner.announce import Announcer, Load, Status
from combiner.answers import MAX_ANSWER_BYTES
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from fedcombiner.servicekit.backoff import Backoff
from fedcombiner.servicekit.errors import StartupError
from fedcombiner.servicekit.http import HttpServer
from fedcombiner.servicekit.lifecycle import Stop, Supervisor
from tests.rpc.discovery_kit import Discovery

QUICK = Backoff(initial=0.001, maximum=0.005)


@asynccontextmanager
async def serving(app: object, port: int = 0) -> AsyncIterator[str]:
    server = HttpServer(app, "127.0.0.1", port)  # type: ignore[arg-type]
    await server.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        await server.stop()


class Scripted:
    """A discovery that gives these answers in turn, the last one for ever, and keeps what it was asked."""

    def __init__(self, *answers: Response) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[dict[str, str], bytes]] = []
        self.times: list[float] = []
        self._more = asyncio.Event()

    async def __call__(self, scope: object, receive: object, send: object) -> None:
        self.times.append(asyncio.get_running_loop().time())
        request = Request(scope, receive)  # type: ignore[arg-type]
        self.asked.append((dict(request.headers), await request.body()))
        self._more.set()
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        await answer(scope, receive, send)  # type: ignore[arg-type]

    async def asked_times(self, times: int) -> None:
        async with asyncio.timeout(10):
            while len(self.asked) < times:
                self._more.clear()
                await self._more.wait()


@asynccontextmanager
async def announcing(announcer: Announcer) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(announcer.run())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool], what: str) -> None:
    """The discovery's clock stands still here, so its state is looked at after each turn of the loop."""
    try:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"waited 10 s for {what}") from None


def announcer(url: str, **changes: object) -> Announcer:
    return Announcer(url, "combiner", "gateway:12080", **{"retries": QUICK, **changes})  # type: ignore[arg-type]


ASSIGNED = JSONResponse({"success": True, "status": "added"})
LATER = JSONResponse({"success": False, "status": "retry", "message": "not idle"}, status_code=200)


KNOWN = {"combiners": {"combiner": {"address": "gateway:12080", "clients": 0}}}


async def test_it_appears_in_the_discovery(tmp_path: Path):
    discovery = Discovery(tmp_path).app
    async with serving(discovery.app) as url:
        answer = await announcer(url).announce()
        assert answer.status is Status.Assigned
        assert answer.body["status"] == "added"
    assert discovery.status() == KNOWN


async def test_a_discovery_that_was_restarted_knows_it_again(tmp_path: Path):
    first, second = (Discovery(tmp_path).app for _ in range(2))
    async with serving(first.app) as url:
        port = int(url.rpartition(":")[2])
        ours = announcer(url, interval=0.01)
        stack = announcing(ours)
        task = await stack.__aenter__()
        await until(lambda: first.status() == KNOWN, "the first announcement")
    try:
        await until(lambda: ours.last is not None and ours.last.status is Status.Unassigned, "a missed one")
        async with serving(second.app, port):
            await until(lambda: second.status() == KNOWN, "the announcement to the restarted discovery")
        assert not task.done()
    finally:
        await stack.__aexit__(None, None, None)


async def test_it_sends_what_fedns_connector_sends():
    script = Scripted(ASSIGNED)
    async with serving(script) as url:
        await announcer(f"{url}/", token="t0k").announce()
        await announcer(url, fqdn="fl.example.org", secure=True).announce()
    (with_token, first), (without, second) = script.asked
    assert json.loads(first) == {
        "combiner_id": "combiner",
        "address": "gateway",
        "fqdn": None,
        "port": 12080,
        "secure_grpc": False,
    }
    assert with_token["authorization"] == "Token t0k"
    assert "authorization" not in without
    assert (json.loads(second)["fqdn"], json.loads(second)["secure_grpc"]) == ("fl.example.org", True)


ANSWERS = [
    (ASSIGNED, Status.Assigned, ""),
    (JSONResponse({"status": "added"}, status_code=203), Status.Assigned, ""),
    (LATER, Status.TryAgain, "not idle"),
    (JSONResponse({"status": "retry", "message": "x\ny"}, status_code=203), Status.TryAgain, "x\\ny"),
    (JSONResponse({"message": "no port"}, status_code=400), Status.UnMatchedConfig, "no port"),
    (JSONResponse({"message": "bad token"}, status_code=401), Status.UnAuthorized, "bad token"),
    (JSONResponse({"message": "Combiner not added."}), Status.Unassigned, "Combiner not added."),
    (PlainTextResponse("oops", status_code=500), Status.Unassigned, "HTTP 500 Internal Server Error"),
    (PlainTextResponse("gone", status_code=404), Status.Unassigned, "HTTP 404 Not Found"),
    (PlainTextResponse("no json"), Status.Unassigned, "HTTP 200 OK"),
    (PlainTextResponse("[" * 20_000), Status.Unassigned, "HTTP 200 OK"),
    (JSONResponse(["status"]), Status.Unassigned, "HTTP 200 OK"),
    (PlainTextResponse(" " * MAX_ANSWER_BYTES + '{"status": "added"}'), Status.Unassigned, "HTTP 200 OK"),
]


async def test_answers_are_read_as_by_fedns_connector():
    async with serving(Scripted(*(answer for answer, _, _ in ANSWERS))) as url:
        ours = announcer(url)
        for _, status, message in ANSWERS:
            found = await ours.announce()
            assert (found.status, found.message) == (status, message)
            assert ours.last == found


@pytest.mark.parametrize(
    ("code", "hint"), [(400, "NAME, ADVERTISE"), (401, "DISCOVERY_TOKEN must be a combiner's token")]
)
async def test_a_refusal_at_the_start_says_what_to_do(code: int, hint: str):
    script = Scripted(LATER, JSONResponse({"message": "no\nway"}, status_code=code))
    async with serving(script) as url, asyncio.timeout(10):
        with pytest.raises(StartupError, match=rf"refuses this combiner: no\\nway; {hint}"):
            await announcer(url).run()
    assert len(script.asked) == 2


@pytest.mark.parametrize("code", [400, 401])
async def test_a_refusal_later_on_is_asked_about_again_and_again(code: int):
    script = Scripted(ASSIGNED, JSONResponse({"message": "no"}, status_code=code))
    async with serving(script) as url, announcing(announcer(url, interval=0.001)) as task:
        await script.asked_times(4)
        assert not task.done()


async def test_it_stops_the_process_in_one_line():
    stop = Stop()
    supervisor = Supervisor(stop)
    async with serving(Scripted(JSONResponse({"message": "no"}, status_code=401))) as url:
        supervisor.spawn("announce", announcer(url).run())
        async with asyncio.timeout(10):
            await stop.wait()
    assert stop.failed
    assert "refuses this combiner: no; DISCOVERY_TOKEN" in stop.reason
    await supervisor.stop()


async def test_it_says_how_many_clients_there_are():
    found: list[Load | None] = [None, Load(7, 100), Load(8, 100)]
    script = Scripted(ASSIGNED)

    async def load() -> Load | None:
        return found.pop(0)

    async with serving(script) as url:
        ours = announcer(url)
        ours.load = load
        for _ in range(3):
            await ours.announce()
    numbers = [
        (asked.get("combiner-active-clients"), asked.get("combiner-max-clients")) for asked, _ in script.asked
    ]
    assert numbers == [(None, None), ("7", "100"), ("8", "100")]


async def test_it_waits_between_attempts_and_longer_after_each():
    script = Scripted(LATER)
    growing = Backoff(initial=0.004, maximum=1000.0, factor=50.0)
    async with serving(script) as url, announcing(announcer(url, retries=growing)):
        await script.asked_times(3)
    first, second, third = script.times[:3]
    assert second - first >= 0.002
    assert third - second >= 0.1


async def test_it_announces_again_and_again():
    script = Scripted(ASSIGNED)
    async with serving(script) as url, announcing(announcer(url, interval=0.001)) as task:
        await script.asked_times(5)
        assert not task.done()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://[bad", "http://no-such-host.invalid", "ftp://x"]
)
async def test_a_discovery_that_cannot_be_reached_is_no_error(url: str):
    answer = await announcer(url).announce()
    assert answer.status is Status.Unassigned
    assert answer.message


@pytest.mark.parametrize(
    "advertise", ["", "gateway", "gateway:", ":12080", "gateway:0", "gateway:65536", "gateway:x"]
)
def test_without_an_address_it_cannot_start(advertise: str):
    with pytest.raises(StartupError, match=r"ADVERTISE=.*HOST:PORT"):
        Announcer("http://discovery:8092", "combiner", advertise)
