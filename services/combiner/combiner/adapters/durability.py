"""Whether the Redis in use keeps what it confirms. Promises to clients are worth as much as that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog

from fedcombiner.servicekit.metrics import Metrics

FSYNC: Final = "appendfsync"

log = structlog.get_logger()


def shortcomings(info: Mapping[str, Any], replicas: int) -> Sequence[str]:
    """Settings that differ from what docs/state.md asks for, as sentences for a person.

    `info`: fields of INFO, and `appendfsync` where Redis tells it; a setting that it does not tell is assumed
    to be right.
    `replicas`: how many have to have each confirmed step (REDIS_WAIT).
    """
    found = []
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        found.append(f"maxmemory-policy is {policy}: set noeviction, or Redis drops jobs when it is full")
    if int(info.get("aof_enabled", 1)) == 0:
        found.append("appendonly is no: set yes, or a restart of Redis loses what it confirmed")
    elif info.get(FSYNC, "always") != "always":
        found.append(f"{FSYNC} is {info[FSYNC]}: set always, or a crash loses the last second of updates")
    connected = int(info.get("connected_slaves", replicas))
    if connected < replicas:
        found.append(
            f"REDIS_WAIT is {replicas}, but {connected} replicas are connected: nothing can be confirmed"
        )
    return found


class Durability:
    """The findings of the last look; each change is logged once."""

    def __init__(self, metrics: Metrics, replicas: int = 0) -> None:
        self._replicas = replicas
        self._found: Sequence[str] | None = None
        self._gauge = metrics.gauge(
            "redis_durable", "Whether Redis is set to keep what it confirms (docs/state.md): 1 or 0."
        )

    def take(self, info: Mapping[str, Any]) -> None:
        found = shortcomings(info, self._replicas)
        self._gauge.set(not found)
        if found and found != self._found:
            log.warning("Redis may lose what it confirmed", why="; ".join(found))
        elif self._found and not found:
            log.info("Redis keeps what it confirms again")
        self._found = found

    def status(self) -> Mapping[str, object]:
        """For /statusz; `durable` is null before the first look."""
        durable = None if self._found is None else not self._found
        return {"durable": durable, "shortcomings": list(self._found or ())}
