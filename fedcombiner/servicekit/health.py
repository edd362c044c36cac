"""grpc.health.v1 from what a process knows of itself: "" is this process, "jobs" all of its back ends."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedcombiner.servicekit.metrics import Metrics
from fedcombiner.servicekit.rpc import generic_only
from fedcombiner.servicekit.status import Backends, Readiness

PROCESS: Final = ""
JOBS: Final = "jobs"

_messages: Any = health_pb2  # the stubs do not have List

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """Readiness and back ends of a process, and the health service that publishes each change of them.

    A component: its start and stop own the one task that publishes.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._changed = asyncio.Event()
        self.readiness = Readiness(self._changed.set)
        self.backends = Backends(metrics.backend_up, notify=self._changed.set)
        self._servicer = _Servicer(self._statuses)
        self._publisher: asyncio.Task[None] | None = None

    def add_to(self, server: grpc.aio.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, generic_only(server))

    async def ready_on_first_contact(self) -> None:
        """Mark the process ready when each of its back ends has answered once."""
        await self.backends.first_contact()
        self.readiness.mark_ready()

    async def start(self) -> None:
        await self._publish()
        self._publisher = asyncio.create_task(self._publish_changes(), name="health publisher")

    async def stop(self) -> None:
        """All services are NOT_SERVING from now on, whatever else is reported."""
        if self._publisher is not None:
            self._publisher.cancel()
            await asyncio.wait([self._publisher])
        await self._servicer.enter_graceful_shutdown()

    async def _publish_changes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._publish()

    async def _publish(self) -> None:
        for service, status in self._statuses().items():
            await self._servicer.set(service, status)

    def _statuses(self) -> Mapping[str, Any]:
        found = {PROCESS: self.readiness.ready, JOBS: self.backends.all_up}
        return {service: _SERVING if serving else _NOT_SERVING for service, serving in found.items()}


class _Servicer(health.aio.HealthServicer):
    """The library's, with List, which is no coroutine there: a call of it would be an error."""

    def __init__(self, statuses: Callable[[], Mapping[str, Any]]) -> None:
        super().__init__()
        self._statuses = statuses

    async def List(self, _request: object, _context: object) -> object:
        statuses = self._statuses()
        return _messages.HealthListResponse(
            statuses={name: {"status": status} for name, status in statuses.items()}
        )
