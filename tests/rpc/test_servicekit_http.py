import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from fedcombiner.servicekit.binding import BindError
from fedcombiner.servicekit.health import Health
from fedcombiner.servicekit.http import HttpServer, operations_app
from fedcombiner.servicekit.metrics import Metrics


@asynccontextmanager
async def operations() -> AsyncIterator[tuple[Health, httpx.AsyncClient]]:
    metrics = Metrics()
    health = Health(metrics)

    async def extra(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("extra")

    app = operations_app(
        service="combiner",
        version="1.2.3",
        metrics=metrics,
        health=health,
        sections={"rounds": lambda: {"running": 1}},
        routes=[Route("/script", extra)],
    )
    server = HttpServer(app, "127.0.0.1", 0)
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
            yield health, client
    finally:
        await server.stop()


async def test_readyz_says_only_that_this_process_answers_clients() -> None:
    async with operations() as (health, client):
        redis = health.backends.register("redis")
        assert (await client.get("/readyz")).status_code == 503
        health.readiness.mark_ready()
        redis.mark_down("gone")
        assert (await client.get("/readyz")).status_code == 200
        health.readiness.mark_draining()
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.text) == (404, "draining\n")
        assert (await client.get("/healthz")).status_code == 200


async def test_statusz_has_the_process_its_back_ends_and_the_sections_of_the_service() -> None:
    async with operations() as (health, client):
        health.backends.register("redis").mark_down("gone")
        status = (await client.get("/statusz")).json()
        assert status["service"] == "combiner"
        assert status["version"] == "1.2.3"
        assert status["uptime_seconds"] >= 0
        assert status["readiness"] == "starting"
        assert status["backends"]["redis"]["last_error"] == "gone"
        assert status["rounds"] == {"running": 1}


async def test_metrics_are_those_of_the_registry_that_was_handed_in() -> None:
    async with operations() as (health, client):
        health.backends.register("redis").mark_up()
        answer = await client.get("/metrics")
        assert 'backend_up{backend="redis"} 1.0' in answer.text
        assert answer.headers["content-type"].startswith("text/plain")


async def test_routes_of_the_service_are_served_and_others_are_not_found() -> None:
    async with operations() as (_, client):
        assert (await client.get("/script")).text == "extra"
        assert (await client.get("/nothing")).status_code == 404


async def test_a_taken_port_is_an_error_that_names_the_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BindError, match=rf"^METRICS_PORT={port}: .*Address already in use$"):
            await HttpServer(Starlette(), "127.0.0.1", port, setting="METRICS_PORT").start()


async def test_the_port_is_free_again_after_the_stop() -> None:
    server = HttpServer(Starlette(), "127.0.0.1", 0)
    await server.start()
    port = server.port
    await server.stop()
    again = HttpServer(Starlette(), "127.0.0.1", port)
    await again.start()
    await again.stop()


async def test_signals_of_the_process_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    server = HttpServer(Starlette(), "127.0.0.1", 0)
    await server.start()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    await server.stop()


async def test_a_request_under_way_is_answered_before_the_stop() -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def slow(_request: Request) -> PlainTextResponse:
        entered.set()
        await release.wait()
        return PlainTextResponse("done")

    server = HttpServer(Starlette(routes=[Route("/", slow)]), "127.0.0.1", 0)
    await server.start()
    async with httpx.AsyncClient() as client:
        request = asyncio.create_task(client.get(f"http://127.0.0.1:{server.port}/"))
        await entered.wait()
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0)
        release.set()
        assert (await request).text == "done"
        await stopping


async def test_an_error_in_a_handler_is_hidden_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_request: Request) -> PlainTextResponse:
        raise KeyError("secret-token")

    server = HttpServer(Starlette(routes=[Route("/", broken)]), "127.0.0.1", 0)
    await server.start()
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{server.port}/")
    await server.stop()
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    assert "secret-token" in caplog.text


async def test_a_caller_cannot_say_that_it_came_over_https_or_from_elsewhere() -> None:
    async def say(request: Request) -> PlainTextResponse:
        assert request.client is not None
        return PlainTextResponse(f"{request.url.scheme} {request.client.host}")

    server = HttpServer(Starlette(routes=[Route("/", say)]), "127.0.0.1", 0)
    await server.start()
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            claims = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "10.1.2.3"}
            answer = await client.get(f"http://127.0.0.1:{server.port}", headers=claims)
    finally:
        await server.stop()
    assert answer.text == "http 127.0.0.1"
