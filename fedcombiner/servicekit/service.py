"""The skeleton of a process: what it serves and owns is declared, and the order of start and stop is here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Generic, Protocol, Self, TypeVar

import grpc
import grpc.aio
from starlette.applications import Starlette
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from fedcombiner.servicekit.health import Health
from fedcombiner.servicekit.http import HttpServer, Section, operations_app
from fedcombiner.servicekit.lifecycle import Component, Lifecycle, Stop, Supervisor
from fedcombiner.servicekit.machine import raise_open_files
from fedcombiner.servicekit.metrics import LoopLag, Metrics
from fedcombiner.servicekit.probe import keep_probing
from fedcombiner.servicekit.rpc import (
    FAREWELL_SECONDS,
    RpcServer,
    ServerGroup,
    add_reflection,
    bind,
    build_server,
)
from fedcombiner.servicekit.settings import ServiceSettings
from fedcombiner.servicekit.tls import ServerIdentity, load_identity

# The gateway looks every second, or later if it is busy. What it sent before may still be on its way then.
LEAVE_SECONDS: Final = 2.0
LEAVE_MOST_SECONDS: Final = 6.0
SETTLE_SECONDS: Final = 0.5
# Beyond the time that is given to calls, for whatever else a server does when it is stopped.
MARGIN_SECONDS: Final = 5.0

Started = Callable[[int, int], None]
Action = Callable[[], Awaitable[None]]
Identify = Callable[[], Coroutine[Any, Any, ServerIdentity]]


class Access(Protocol):
    """Decides who may call what."""

    @property
    def interceptors(self) -> Sequence[grpc.aio.ServerInterceptor]: ...

    def protect(self, app: Starlette, listener: Any, /) -> ASGIApp: ...

    def start(self, supervisor: Supervisor) -> None: ...


AccessT = TypeVar("AccessT", bound=Access)


class Service(Generic[AccessT]):
    """One process of ours, or all that makes one up.

    Everything is declared before it is run or entered as `async with`. It starts in this order: the port for
    operators; the ports of clients are opened, and connections wait; the parts, as declared; background
    tasks; HTTP; gRPC. It stops in the reverse order, after it has drained:

    1. `/readyz` says so, and what was declared `on_drain` is done, while calls are served as ever;
    2. when the gateway has had the time to notice, `before_close`;
    3. the ports close, and the calls under way have DRAIN_SECONDS.

    Attributes:
        port: of gRPC, or of HTTP where there is no gRPC.
        operations_port: of `/metrics`, `/readyz` and the like.
        identity: what clients are shown; None: no TLS.

    Raises StartupError: the TLS files cannot be used.
    """

    def __init__(
        self,
        name: str,
        version: str,
        settings: ServiceSettings,
        stop: Stop,
        access: Callable[[Metrics, Health], AccessT],
        *,
        ready_at_once: bool = False,
        calls_wait: bool = False,
    ) -> None:
        """`ready_at_once`: before its back ends have answered. `calls_wait`: gRPC starts after they have."""
        self._name = name
        self._version = version
        self._settings = settings
        self.stop = stop
        self.metrics = Metrics()
        self.identity = load_identity(settings.tls_cert_file, settings.tls_key_file, self.metrics)
        self.health = Health(self.metrics)
        self.supervisor = Supervisor(stop)
        self.access = access(self.metrics, self.health)
        self._ready_at_once = ready_at_once
        self._calls_wait = calls_wait
        self._lifecycle = Lifecycle(stop)
        self._sections: dict[str, Section] = {}
        self._routes: list[BaseRoute] = []
        self._parts: list[tuple[str, Component]] = []
        self._tasks: list[tuple[str, Callable[[], Coroutine[Any, Any, None]]]] = []
        self._when_bound: list[Callable[[], None]] = []
        self._on_drain: list[tuple[str, Action]] = []
        self._before_close: list[tuple[str, Action]] = []
        self._http: HttpServer | None = None
        self._server: ServerGroup | None = None
        self._identify: Identify | None = None
        self.port = self.operations_port = 0

    # --- what it consists of

    def rpc(
        self,
        handler: grpc.GenericRpcHandler,
        *,
        names: Collection[str],
        unavailable_on_bug: Collection[str],
        identify: Identify | None = None,
    ) -> None:
        """Serve by gRPC: services of these full names, health and reflection.

        `unavailable_on_bug`: see `build_server`. `identify` gives the identity, if files do not.
        """
        server = build_server(
            self.metrics.rpc, unavailable_on_bug=unavailable_on_bug, interceptors=self.access.interceptors
        )
        server.add_generic_rpc_handlers((handler,))
        self.health.add_to(server)
        add_reflection(server, names)
        self._server = server
        self._identify = identify

    def http(self, app: ASGIApp, port: int | None = None, *, setting: str = "PORT") -> None:
        """Serve clients by HTTP, at the `port` that is named by the `setting`; `app` guards itself."""
        self._http = HttpServer(
            app,
            self._settings.host,
            self._settings.port if port is None else port,
            setting=setting,
            identity=self.identity,
            grace=self._settings.drain_seconds,
        )

    def section(self, name: str, show: Section, routes: Sequence[BaseRoute] = ()) -> None:
        """One more part of `/statusz`, and routes beside it."""
        self._sections[name] = show
        self._routes += routes

    def component(self, name: str, component: Component) -> None:
        self._parts.append((name, component))

    def owns(self, name: str, close: Action) -> None:
        """Something to close in its turn among the parts."""
        self._parts.append((name, _Owned(close)))

    def task(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work` in the background for as long as calls are served."""
        self._tasks.append((name, work))

    def backend(
        self, name: str, step: Callable[[], Awaitable[object]], *, away: tuple[type[Exception], ...]
    ) -> None:
        """Look by `step` whether the back end is there; it raises one of `away` if not."""
        status = self.health.backends.register(name)
        self.task(f"probe {name}", lambda: keep_probing(status, step, away=away))

    def when_bound(self, action: Callable[[], None]) -> None:
        """Call `action` as soon as `port` and `http_port` are known, before any part starts."""
        self._when_bound.append(action)

    def on_drain(self, name: str, action: Action) -> None:
        self._on_drain.append((name, action))

    def before_close(self, name: str, action: Action) -> None:
        self._before_close.append((name, action))

    # --- its life

    @property
    def http_port(self) -> int:
        assert self._http is not None
        return self._http.port

    async def run(self, started: Started = lambda _port, _operations_port: None) -> None:
        """Serve until the stop. `started` is told the ports as soon as calls are taken.

        Raises:
            StartupError: a port is taken, or a part cannot start.
            Stopped: the stop came before that.
        """
        async with self:
            started(self.port, self.operations_port)
            await self.stop.wait()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._lifecycle.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._lifecycle.__aexit__(kind, error, trace)

    async def _start(self) -> None:
        raise_open_files()
        start = self._lifecycle.start
        await start("health", self.health)
        await start("loop lag", LoopLag(self.metrics))
        await self._start_operations()
        await self._open_ports()
        for name, component in self._parts:
            await start(name, component)
        await start("background tasks", self.supervisor)
        self._spawn_tasks()
        drain = self._settings.drain_seconds
        if self._http is not None:
            await start("http", self._http, stop_seconds=drain + MARGIN_SECONDS)
        if self._calls_wait:
            await self.stop.guard(self.health.backends.first_contact())
        if self._server is not None:
            rpc = RpcServer(self._server, grace=drain)
            await start("rpc", rpc, stop_seconds=drain + FAREWELL_SECONDS + MARGIN_SECONDS)
        self._prepare_drain()
        # Only now: whoever finds it ready may stop it, and expects a drain.
        if self._ready_at_once:
            self.health.readiness.mark_ready()
        else:
            self.supervisor.spawn("ready", self.health.ready_on_first_contact())

    async def _start_operations(self) -> None:
        app = operations_app(
            service=self._name,
            version=self._version,
            metrics=self.metrics,
            health=self.health,
            sections=self._sections,
            routes=self._routes,
        )
        settings = self._settings
        server = HttpServer(
            self.access.protect(app, "operations"),
            settings.metrics_host,
            settings.metrics_port,
            setting="METRICS_PORT",
        )
        await self._lifecycle.start("operations", server)
        self.operations_port = server.port

    async def _open_ports(self) -> None:
        identity: ServerIdentity | None = self.identity
        if self._identify is not None:
            identity = await self.stop.guard(self._identify())
        if self._http is not None:
            self._http.bind()
            self._lifecycle.on_stop("port of http", self._http.unbind)
            self.port = self._http.port
        if self._server is not None:
            self.port = bind(self._server, self._settings.host, self._settings.port, identity=identity)
        for action in self._when_bound:
            action()

    def _spawn_tasks(self) -> None:
        self.access.start(self.supervisor)
        for name, work in self._tasks:
            self.supervisor.spawn(name, work())

    # --- its end

    def _prepare_drain(self) -> None:
        """The last that was added is the first that is done."""
        for name, action in reversed(self._before_close):
            self._lifecycle.on_stop(name, action)
        leaving = _Leaving(self.health)
        self._lifecycle.on_stop("left the gateway", leaving.finish)
        for name, action in reversed(self._on_drain):
            self._lifecycle.on_stop(name, action)
        self._lifecycle.on_stop("readiness", leaving.begin)


class _Owned:
    def __init__(self, close: Action) -> None:
        self._close = close

    async def start(self) -> None:
        """It is there already."""

    async def stop(self) -> None:
        await self._close()


class _Leaving:
    """Gives a gateway that watches `/readyz` time to send calls elsewhere; no time if nobody watches."""

    def __init__(self, health: Health) -> None:
        self._readiness = health.readiness
        self._watched = False
        self._begun = 0.0

    async def begin(self) -> None:
        self._watched = self._readiness.watched
        self._begun = asyncio.get_running_loop().time()
        self._readiness.mark_draining()

    async def finish(self) -> None:
        if not self._watched:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._begun + LEAVE_MOST_SECONDS):
                await self._readiness.everybody_told()
        told = asyncio.get_running_loop().time()
        await asyncio.sleep(max(self._begun + LEAVE_SECONDS - told, SETTLE_SECONDS))
