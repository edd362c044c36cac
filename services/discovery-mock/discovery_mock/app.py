"""The HTTP side of a discovery, and the object graph of its process."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from discovery_mock.messages import (
    BadRequest,
    announced,
    assigned,
    not_yet,
    parse_announce,
    parse_client,
    refused,
)
from discovery_mock.registry import CombinerRegistry, RegistryFull
from discovery_mock.settings import DiscoverySettings
from fedcombiner.access.http import refusal
from fedcombiner.access.policy import decide
from fedcombiner.access.redis_tokens import reader_of
from fedcombiner.access.roles import Role
from fedcombiner.access.setup import AccessControl
from fedcombiner.access.table import Access
from fedcombiner.servicekit.errors import ServiceError, Unavailable
from fedcombiner.servicekit.health import Health
from fedcombiner.servicekit.http import HttpServer, operations_app
from fedcombiner.servicekit.lifecycle import Lifecycle, Stop, Supervisor
from fedcombiner.servicekit.metrics import LoopLag, Metrics
from fedcombiner.servicekit.tls import load_identity
from fedcombiner.version import __version__

log = structlog.get_logger(__name__)

MAX_BODY_BYTES: Final = 16 * 1024
BODY_SECONDS: Final = 10.0
TRY_LATER: Final = 203
NETWORK_ID: Final = "federated-combiner"
OUTCOMES: Final = ("ok", "retry", "refused")

Handler = Callable[[bytes], tuple[int, Mapping[str, object]]]
Started = Callable[[int, int], None]


class DiscoveryApp:
    """Plays FEDn's controller for the announce step of combiners and the assign step of clients.

    `app` is the ASGI application of its public port, behind `access` (None: for everybody). What it knows is
    in memory: combiners announce themselves every 30 s, so a restarted discovery soon knows them again.
    """

    def __init__(
        self,
        settings: DiscoverySettings,
        metrics: Metrics,
        access: AccessControl | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._registry = CombinerRegistry(settings.combiner_ttl, clock)
        self._answers = metrics.counters(
            "discovery_answers_total",
            "Answers of the discovery.",
            request=("add_combiner", "add_client"),
            outcome=OUTCOMES,
        )
        metrics.gauge("discovery_combiners", "Combiners that announce themselves.").set_function(
            lambda: len(self._registry.live())
        )
        app = Starlette(
            routes=[
                Route("/add_combiner", self._endpoint("add_combiner", self._add_combiner), methods=["POST"]),
                Route("/add_client", self._endpoint("add_client", self._add_client), methods=["POST"]),
            ],
            exception_handlers={HTTPException: _in_json},
        )
        self.app: ASGIApp = _SingleSlashes(
            app if access is None else access.protect(app, "discovery", self._refusal)
        )

    def status(self) -> Mapping[str, object]:
        """For /statusz."""
        return {"combiners": {c.name: f"{c.address}:{c.port}" for c in self._registry.live()}}

    def _refusal(self, error: ServiceError, access: Access) -> Response:
        """Clients of 0.17 and later end at anything but a retry, so that is what they and combiners are told
        while their tokens cannot be checked."""
        if isinstance(error, Unavailable) and access.roles & {Role.CLIENT, Role.COMBINER}:
            return JSONResponse(not_yet(error.message, self._settings.package), TRY_LATER)
        return refusal(error, access)

    def _endpoint(self, request_name: str, handle: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                code, body = handle(await _body(request))
            except BadRequest as error:
                log.info("refused", request=request_name, reason=str(error))
                code, body = 400, refused(str(error))
            outcome = {200: "ok", TRY_LATER: "retry"}.get(code, "refused")
            self._answers.labels(request_name, outcome).inc()
            return JSONResponse(body, status_code=code)

        return answer

    def _add_combiner(self, body: bytes) -> tuple[int, Mapping[str, object]]:
        combiner = parse_announce(body)
        try:
            new = self._registry.announce(combiner)
        except RegistryFull:
            return TRY_LATER, not_yet("There are too many combiners.", self._settings.package)
        if new:
            log.info(
                "combiner announced", combiner=combiner.name, address=combiner.address, port=combiner.port
            )
        return 200, announced(NETWORK_ID)

    def _add_client(self, body: bytes) -> tuple[int, Mapping[str, object]]:
        client = parse_client(body)
        settings = self._settings
        preferred = client.preferred_combiner
        combiner = self._registry.find(preferred) if preferred else self._registry.next()
        if combiner is None:
            # FEDn says 400 here, and its clients exit: while a combiner restarts, they would all be gone.
            missing = f"Combiner {preferred} is not" if preferred else "No combiner is"
            return TRY_LATER, not_yet(f"{missing} available yet.", settings.package)
        log.info("client assigned", client=client.name, combiner=combiner.name)
        return 200, assigned(combiner, client, helper_type=settings.helper_type, package=settings.package)


class _SingleSlashes:
    """Clients of FEDn 0.17 to 0.33 ask for `//download_package`; a path is the same with one slash."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": re.sub("/{2,}", "/", scope["path"])}
        await self._app(scope, receive, send)


async def _body(request: Request) -> bytes:
    """Raises HTTPException as soon as it is too large or too slow."""
    body = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise HTTPException(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
    except TimeoutError:
        raise HTTPException(408, f"the body did not come within {BODY_SECONDS:g} s") from None
    except ClientDisconnect:
        raise HTTPException(400, "the client went away") from None
    return body


async def _in_json(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(refused(error.detail), status_code=error.status_code, headers=error.headers)


async def serve(
    settings: DiscoverySettings, stop: Stop, started: Started = lambda _port, _metrics_port: None
) -> None:
    """Run a discovery until the stop. `started` is told its ports as soon as it answers.

    Raises:
        StartupError: a port is taken, a setting cannot be, or everybody could call everything.
    """
    metrics = Metrics()
    identity = load_identity(settings.tls_cert_file, settings.tls_key_file, metrics)
    health = Health(metrics)
    supervisor = Supervisor(stop)
    tokens = reader_of(settings)
    access = AccessControl(decide(settings, settings.listening), metrics, health, tokens)
    discovery = DiscoveryApp(settings, metrics, access)
    operations = operations_app(
        service="discovery-mock",
        version=__version__,
        metrics=metrics,
        health=health,
        sections={"discovery": discovery.status},
    )
    public = HttpServer(discovery.app, settings.host, settings.port, identity=identity)
    guarded = access.protect(operations, "operations")
    private = HttpServer(guarded, settings.metrics_host, settings.metrics_port, setting="METRICS_PORT")
    async with Lifecycle(stop) as lifecycle:
        await lifecycle.start("loop lag", LoopLag(metrics))
        await lifecycle.start("operations", private)
        if tokens is not None:
            lifecycle.on_stop("tokens", tokens.aclose)
        await lifecycle.start("background tasks", supervisor)
        access.start(supervisor)
        await lifecycle.start("http", public)
        supervisor.spawn("ready", health.ready_on_first_contact())
        started(public.port, private.port)
        await stop.wait()
        health.readiness.mark_draining()
