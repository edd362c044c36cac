"""Figures that Redis gives of itself, as metrics of the combiner: it has none that Prometheus can read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from combiner.ports import StateUnavailable
from fedcombiner.servicekit.backoff import Backoff
from fedcombiner.servicekit.metrics import Metrics

EVERY_S: Final = 10.0
_FIRST_LOOK: Final = Backoff(initial=0.1, maximum=EVERY_S)

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


Info = Mapping[str, Any]


async def keep_looking(info: Callable[[], Awaitable[Info]], *takers: Callable[[Info], None]) -> None:
    """Give each taker what Redis says of itself, until cancelled: there is no event in Redis to wait for."""
    pauses = _FIRST_LOOK.delays()
    while True:
        try:
            found = await info()
        except StateUnavailable:
            await asyncio.sleep(min(next(pauses), EVERY_S))
            continue
        for take in takers:
            take(found)
        await asyncio.sleep(EVERY_S)


class RedisFigures:
    """Every replica has them, from the same Redis: dashboards take the maximum. They stay as they were while
    Redis is away, which is what `backend_up` tells.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._gauges = {field: metrics.gauge(*figure) for field, figure in FIGURES.items()}

    def take(self, info: Mapping[str, Any]) -> None:
        for field, gauge in self._gauges.items():
            gauge.set(float(info.get(field, 0)))
