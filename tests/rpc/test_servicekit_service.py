"""The skeleton of a process: in which order it starts and stops, and how it leaves a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from starlette.applications import Starlette
from starlette.types import ASGIApp

from fedcombiner.servicekit.errors import StartupError
from fedcombiner.servicekit.lifecycle import Stop, Supervisor
from fedcombiner.servicekit.service import Service
from fedcombiner.servicekit.settings import ServiceSettings
from fedcombiner.servicekit.status import WATCHED_SECONDS, Readiness

DEADLINE = 20.0
LOCAL = {"host": "127.0.0.1", "port": 0, "metrics_host": "127.0.0.1", "metrics_port": 0}
SERVING = health_pb2.HealthCheckResponse.SERVING


class Everybody:
    """Access for everybody to everything."""

    interceptors: tuple[grpc.aio.ServerInterceptor, ...] = ()

    def protect(self, app: Starlette, _listener: str) -> ASGIApp:
        return app

    def start(self, supervisor: Supervisor) -> None:
        pass


class NoServices(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return None


class Journal:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> Callable[[], Awaitable[None]]:
        async def noted() -> None:
            self.lines.append(line)

        return noted

    def component(self, name: str) -> Any:
        class Component:
            start = staticmethod(self.note(f"start {name}"))
            stop = staticmethod(self.note(f"stop {name}"))

        return Component()


def made(**options: Any) -> Service[Everybody]:
    settings = ServiceSettings(**LOCAL)
    service = Service("test", "1", settings, Stop(), lambda *_: Everybody(), **options)
    service.rpc(NoServices(), names=(), unavailable_on_bug=())
    return service


@asynccontextmanager
async def operators_of(service: Service[Everybody]) -> AsyncIterator[httpx.AsyncClient]:
    base = f"http://127.0.0.1:{service.operations_port}"
    async with httpx.AsyncClient(base_url=base, trust_env=False) as http:
        yield http


async def test_parts_start_as_declared_and_stop_in_reverse_after_the_drain() -> None:
    journal, service = Journal(), made(ready_at_once=True)
    service.component("a", journal.component("a"))
    service.owns("b", journal.note("close b"))
    service.component("c", journal.component("c"))
    service.before_close("streams", journal.note("end streams"))
    service.on_drain("work", journal.note("hand work over"))
    async with service:
        assert journal.lines == ["start a", "start c"]
        assert service.health.readiness.ready
        journal.lines.clear()
    assert journal.lines == ["hand work over", "end streams", "stop c", "close b", "stop a"]


async def test_a_part_that_cannot_start_leaves_nothing_behind() -> None:
    class Broken:
        async def start(self) -> None:
            raise StartupError("no")

        async def stop(self) -> None: ...

    journal, service = Journal(), made()
    service.component("a", journal.component("a"))
    service.component("broken", Broken())
    service.http(Starlette(), 0)
    with pytest.raises(StartupError):
        await service.__aenter__()
    assert journal.lines == ["start a", "stop a"]
    async with httpx.AsyncClient(trust_env=False) as http:
        for port in (service.http_port, service.operations_port):
            with pytest.raises(httpx.ConnectError):
                await http.get(f"http://127.0.0.1:{port}/")


async def test_calls_are_served_as_ever_while_the_gateway_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcombiner.servicekit.service.LEAVE_SECONDS", 1.0)
    service = made(ready_at_once=True)
    await service.__aenter__()
    async with (
        operators_of(service) as http,
        grpc.aio.insecure_channel(f"127.0.0.1:{service.port}") as channel,
    ):
        assert (await http.get("/readyz")).status_code == 200
        closed = asyncio.Event()
        leaving = asyncio.create_task(_close(service, closed))
        async with asyncio.timeout(DEADLINE):
            while (await http.get("/readyz")).status_code != 404:
                pass
        request = health_pb2.HealthCheckRequest()
        reply = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=DEADLINE)
        assert reply.status != SERVING
        assert not closed.is_set()
        await asyncio.wait_for(leaving, DEADLINE)


async def test_it_is_ready_when_it_takes_calls() -> None:
    """Its back ends have answered before."""
    service = made()
    seen: list[bool] = []

    class Slow:
        async def start(self) -> None:
            await asyncio.wait_for(service.health.backends.first_contact(), DEADLINE)
            seen.append(service.health.readiness.ready)

        async def stop(self) -> None: ...

    service.component("slow", Slow())
    service.health.backends.register("store").mark_up()
    async with service, operators_of(service) as http:
        async with asyncio.timeout(DEADLINE):
            while (await http.get("/readyz")).status_code != 200:
                pass
        async with grpc.aio.insecure_channel(f"127.0.0.1:{service.port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
        assert (seen, reply.status) == ([False], SERVING)


async def test_nobody_is_waited_for_who_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcombiner.servicekit.service.LEAVE_SECONDS", 3600.0)
    async with asyncio.timeout(DEADLINE), made(ready_at_once=True):
        pass


async def test_a_process_is_watched_for_as_long_as_somebody_asks_again() -> None:
    now = [0.0]
    readiness = Readiness(clock=lambda: now[0])
    assert not readiness.watched
    assert readiness.ask("gateway") == "starting"
    now[0] = WATCHED_SECONDS - 0.1
    assert readiness.watched
    now[0] = WATCHED_SECONDS
    assert not readiness.watched


async def test_everybody_who_asks_is_told_of_the_drain() -> None:
    """A gateway that is late holds the drain up, somebody who asked once long ago does not."""
    now = [0.0]
    readiness = Readiness(clock=lambda: now[0])
    readiness.ask("once")
    now[0] = WATCHED_SECONDS
    for gateway in ("one", "two"):
        readiness.ask(gateway)
    readiness.mark_draining()
    told = asyncio.create_task(readiness.everybody_told())
    readiness.ask("one")
    await asyncio.wait({told}, timeout=0)
    assert not told.done()
    readiness.ask("two")
    await asyncio.wait_for(told, DEADLINE)


async def _close(service: Service[Everybody], closed: asyncio.Event) -> None:
    await service.__aexit__(None, None, None)
    closed.set()
