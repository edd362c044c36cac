"""The servers of a stack with tokens asked for, and callers with tokens of every kind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from grpc.aio._server import Server
from starlette.applications import Starlette
from starlette.routing import Route

from fedcombiner.access.http import Protected
from fedcombiner.access.record import TokenRecord
from fedcombiner.access.redis_tokens import RedisTokens
from fedcombiner.access.roles import Role
from fedcombiner.access.secret import digest
from fedcombiner.servicekit.http import HttpServer
from fedcombiner.servicekit.lifecycle import Stop

DEADLINE = 20.0
OPERATOR = "fct_operator-of-the-settings"
LOCAL = {"host": "127.0.0.1", "port": 0, "metrics_host": "127.0.0.1", "metrics_port": 0}

# Kinds of callers, and the token of each.
TOKENS: dict[str, str | None] = {
    "no token": None,
    "wrong": "fct_wrong",
    "expired": "fct_expired",
    "revoked": "fct_revoked",
    **{role.value: f"fct_{role}" for role in Role},
    "settings": OPERATOR,
}


async def put_tokens(url: str) -> None:
    """The tokens of TOKENS that are in Redis."""
    store = RedisTokens(url)
    for role in Role:
        await store.put(digest(f"fct_{role}"), TokenRecord(id=role, role=role, created=time.time()))
    expired = TokenRecord(id="expired", role=Role.OPERATOR, expires=time.time() - 1)
    revoked = TokenRecord(id="revoked", role=Role.OPERATOR, revoked=time.time())
    await store.put(digest("fct_expired"), expired)
    await store.put(digest("fct_revoked"), revoked)
    await store.aclose()


def scratch(root: Path) -> dict[str, Path]:
    return {"data": root / "models", "scratch": root / "scratch"}


@asynccontextmanager
async def running(
    serve: Callable[..., Coroutine[Any, Any, None]], settings: object
) -> AsyncIterator[tuple[int, int]]:
    """A service as its main runs it. Yields its ports."""
    stop = Stop()
    ports: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(settings, stop, lambda *both: ports.set_result(both)))
    try:
        await asyncio.wait({task, ports}, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield ports.result()
    finally:
        stop.set("end of the test")
        await asyncio.wait_for(task, DEADLINE)


class Registered:
    """What all servers that are made while this is patched in have: methods, and routes behind the gate."""

    def __init__(self) -> None:
        self.methods: set[str] = set()
        self.routes: set[str] = set()

    def patch(self, monkeypatch: Any) -> None:
        add, make = Server.add_generic_rpc_handlers, HttpServer.__init__

        def adding(server: Any, handlers: Any) -> None:
            for handler in handlers:
                self.methods |= set(getattr(handler, "_handlers", None) or handler._method_handlers)
            add(server, handlers)

        def making(server: Any, app: Any, *args: Any, **kwargs: Any) -> None:
            self.routes |= _routes(app)
            make(server, app, *args, **kwargs)

        monkeypatch.setattr(Server, "add_generic_rpc_handlers", adding)
        monkeypatch.setattr(HttpServer, "__init__", making)


def _routes(app: Any) -> set[str]:
    protected = False
    while not isinstance(app, Starlette):
        protected = protected or isinstance(app, Protected)
        app = app._app
    assert protected, f"not behind the gate: {app.routes}"
    assert all(isinstance(route, Route) for route in app.routes)
    return {f"{method} {route.path}" for route in app.routes for method in route.methods - {"HEAD"}}
