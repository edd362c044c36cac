"""Figures that Redis gives of itself, as metrics of the combiner: it has none that Prometheus can read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from combiner.ports import StateUnavailable
from fedcombiner.servicekit.metrics import Metrics

EVERY_S: Final = 10.0

# Field of INFO -> name and text of the metric.
FIGURES: Final[Mapping[str, tuple[str, str]]] = {
    "used_memory": ("redis_memory_bytes", "Memory that Redis uses."),
    "maxmemory": ("redis_memory_max_bytes", "Memory at which Redis refuses writes; 0: no limit."),
    "connected_clients": ("redis_connections", "Connections to Redis."),
    "instantaneous_ops_per_sec": ("redis_commands_per_second", "Commands that Redis runs."),
    "aof_current_size": ("redis_log_bytes", "Size of the append-only file."),
    "aof_delayed_fsync": ("redis_fsyncs_delayed", "Writes that waited for the disk, since Redis started."),
    "uptime_in_seconds": ("redis_uptime_seconds", "Since Redis started."),
}


class RedisFigures:
    """Every replica has them, from the same Redis: dashboards take the maximum. They stay as they were while
    Redis is away, which is what `backend_up` tells.
    """

    def __init__(self, metrics: Metrics, info: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
        self._info = info
        self._gauges = {field: metrics.gauge(*figure) for field, figure in FIGURES.items()}

    async def run(self) -> None:
        """Until cancelled: there is no event in Redis to wait for."""
        while True:
            with suppress(StateUnavailable):
                self._take(await self._info())
            await asyncio.sleep(EVERY_S)

    def _take(self, info: Mapping[str, Any]) -> None:
        for field, gauge in self._gauges.items():
            gauge.set(float(info.get(field, 0)))
