"""Connections of HTTP that never say what they want, more of them than a process may have files."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from fedcombiner.servicekit import connections
from fedcombiner.servicekit.http import HttpServer
from tests.rpc.modelservice_kit import eventually

DEADLINE = 30.0
HALF = b"GET /assign HTTP/1.1\r\nHost: x\r\nX-Slow: "
Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Port:
    """A served port, and half-open connections to it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.release = asyncio.Event()
        self._peers: list[Peer] = []

    async def half(self, sent: bytes = HALF) -> Peer:
        peer = await asyncio.open_connection("127.0.0.1", self.port)
        self._peers.append(peer)
        peer[1].write(sent)
        return peer

    async def get(self, path: str = "/") -> str:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=DEADLINE) as client:
            return (await client.get(path)).text

    def close(self) -> None:
        for _, writer in self._peers:
            writer.close()


@asynccontextmanager
async def serving() -> AsyncIterator[Port]:
    async def quick(_request: Request) -> Response:
        return PlainTextResponse("quick")

    async def slow(request: Request) -> Response:
        await port.release.wait()
        return PlainTextResponse(f"slow {len(await request.body())}")

    app = Starlette(routes=[Route("/", quick), Route("/slow", slow, methods=["GET", "PUT"])])
    server = HttpServer(app, "127.0.0.1", 0)
    await server.start()
    port = Port(server.port)
    try:
        yield port
    finally:
        port.close()
        await server.stop()


async def ended(peer: Peer) -> bool:
    """Until the server has closed the connection."""
    try:
        return await asyncio.wait_for(peer[0].read(), DEADLINE) == b""
    except ConnectionResetError:
        return True


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.01)
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.05)
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.05)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    "sent",
    [b"", b"GET", HALF, b"PUT /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"],
    ids=["nothing", "half a line", "half the headers", "half a body"],
)
async def test_a_request_that_does_not_arrive_ends_its_connection(sent: bytes) -> None:
    async with serving() as port:
        port.release.set()
        assert await ended(await port.half(sent))
        assert await port.get() == "quick"


@pytest.mark.usefixtures("soon")
async def test_headers_that_trickle_move_no_deadline() -> None:
    async with serving() as port:
        peer = await port.half()

        async def trickle() -> None:
            while not peer[1].is_closing():
                peer[1].write(b"x")
                await asyncio.sleep(0.005)

        trickling = asyncio.create_task(trickle())
        assert await ended(peer)
        trickling.cancel()


@pytest.mark.usefixtures("soon")
async def test_a_slow_answer_has_no_deadline() -> None:
    async with serving() as port:
        answer = asyncio.create_task(port.get("/slow"))
        assert await ended(await port.half())
        assert await ended(await port.half())
        assert not answer.done()
        port.release.set()
        assert await answer == "slow 0"


async def test_hundreds_of_half_requests_leave_room_for_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 100)
    monkeypatch.setattr(connections, "YOUNG_SECONDS", 0.0)
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.01)
    async with serving() as port:
        answer = asyncio.create_task(port.get("/slow"))
        peers = [await port.half() for _ in range(400)]
        cut = [asyncio.create_task(ended(peer)) for peer in peers]
        await eventually(lambda: sum(task.done() for task in cut) >= 300, "the oldest to be closed")
        assert not any(task.done() for task in cut[-90:])
        assert [await port.get() for _ in range(20)] == ["quick"] * 20
        port.release.set()
        assert await answer == "slow 0"
        for task in cut:
            task.cancel()


async def test_connections_that_were_just_made_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 10)
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.01)
    monkeypatch.setattr(connections, "YOUNG_SECONDS", DEADLINE)
    async with serving() as port:
        peers = [await port.half(b"") for _ in range(50)]
        for reader, writer in peers:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await asyncio.wait_for(reader.read(), DEADLINE)).endswith(b"quick")


def test_a_port_takes_a_quarter_of_the_files_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1024, 4096))
    assert connections.most_connections() == 256
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1 << 20, 1 << 20))
    assert connections.most_connections() == connections.MAX_CONNECTIONS


async def test_more_half_requests_than_files() -> None:
    """1,100 in a process that may open 1,024 files: its other ports answer, and soon this one, too."""
    script = "import asyncio, tests.rpc.test_http_connections as t; asyncio.run(t.two_ports())"
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdin=pipe, stdout=pipe, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    public, private = [Port(int(await process.stdout.readline())) for _ in range(2)]
    for _ in range(1100):
        await public.half()
    assert await private.get() == "quick"
    assert await public.get() == "quick"
    public.close()
    await asyncio.wait_for(process.communicate(b""), DEADLINE)


async def two_ports() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    async with serving() as public, serving() as private:
        print(public.port, private.port, sep="\n", flush=True)
        await asyncio.to_thread(sys.stdin.read)
