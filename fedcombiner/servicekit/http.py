"""HTTP inside the running loop: any ASGI application, and the page of a process for its operators."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, cast

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from fedcombiner.servicekit.binding import BindError, listen
from fedcombiner.servicekit.connections import BoundedProtocol, Connections
from fedcombiner.servicekit.health import Health
from fedcombiner.servicekit.metrics import Metrics
from fedcombiner.servicekit.status import State
from fedcombiner.servicekit.tls import IdentityInFiles, server_context

# The answer of /readyz by state. On 404 a gateway sends no new calls, and lets those under way end.
READYZ_STATUS: Final[Mapping[State, int]] = {"starting": 503, "ready": 200, "draining": 404}

Section = Callable[[], object]


class HttpServer:
    """An ASGI application on a port, as a component: started and stopped by us, deaf to signals.

    `port` is the real one once it is bound, also when 0 was asked for. With an `identity` it speaks https.
    `grace`: seconds that requests under way have when it is stopped.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        *,
        setting: str = "PORT",
        identity: IdentityInFiles | None = None,
        grace: float = 2.0,
    ) -> None:
        self.host = host
        self.port = port
        self._setting = setting
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            # Whether a request came over https is known from the connection, not from what the caller says.
            proxy_headers=False,
            server_header=False,
            # The header is renewed by a loop that wakes ten times a second; without it nothing has to run.
            date_header=False,
            timeout_graceful_shutdown=grace,  # type: ignore[arg-type]  # it need not be an int
        )
        config.load()
        self._connections = Connections()
        # uvicorn calls it for each connection.
        config.http_protocol_class = cast(
            type[asyncio.Protocol], partial(BoundedProtocol, known=self._connections)
        )
        config.ssl = None if identity is None else server_context(identity)
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)
        self._sockets: list[socket.socket] = []

    def bind(self) -> None:
        """Listen; connections wait for the start. Raises BindError."""
        try:
            self._sockets = listen(self.host, self.port)
        except OSError as error:
            raise BindError(self.host, self.port, self._setting, error) from None
        self.port = self._sockets[0].getsockname()[1]

    async def start(self) -> None:
        """Answer, and listen unless it does. Raises BindError."""
        if not self._sockets:
            self.bind()
        # Not serve(): that takes over the signals of the process and waits in a loop of its own.
        await self._server.startup(sockets=self._sockets)
        self._connections.start()

    async def stop(self) -> None:
        """Close the port; requests under way have the `grace`."""
        self._connections.stop()
        await self._server.shutdown(sockets=self._sockets)

    async def unbind(self) -> None:
        """Close the port of a server that was not started."""
        for sock in self._sockets:
            sock.close()


def operations_app(
    *,
    service: str,
    version: str,
    metrics: Metrics,
    health: Health,
    sections: Mapping[str, Section] | None = None,
    routes: Sequence[BaseRoute] = (),
) -> Starlette:
    """`/metrics`, `/healthz` (the loop runs), `/readyz` (this process answers clients: 200; not yet: 503; it
    drains: 404) and `/statusz`: JSON with one entry for each of `sections`, whose values are called at each
    request and must not wait. `routes` are the service's own."""
    begun = time.monotonic()

    async def show_metrics(request: Request) -> Response:
        body, content_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        host = request.client.host if request.client else ""
        state = health.readiness.ask(f"{host} {request.headers.get('user-agent', '')[:100]}")
        return PlainTextResponse(f"{state}\n", status_code=READYZ_STATUS[state])

    async def statusz(_request: Request) -> Response:
        status: dict[str, object] = {
            "service": service,
            "version": version,
            "uptime_seconds": round(time.monotonic() - begun, 3),
            "readiness": health.readiness.state,
            "backends": health.backends.snapshot(),
        }
        return _IndentedJson(status | {name: section() for name, section in (sections or {}).items()})

    return Starlette(
        routes=[
            Route("/metrics", show_metrics),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/statusz", statusz),
            *routes,
        ]
    )


class _IndentedJson(JSONResponse):
    def render(self, content: Any) -> bytes:
        return (json.dumps(content, indent=2, default=str) + "\n").encode()
