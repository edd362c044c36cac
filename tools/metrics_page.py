"""docs/metrics.md, from what the services really answer: `python -m tools.metrics_page`."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc.aio
import httpx
from combiner.app import serve as serve_combiner
from combiner.settings import CombinerSettings
from discovery_mock.app import serve as serve_discovery
from discovery_mock.settings import DiscoverySettings
from grpc_health.v1 import health_pb2, health_pb2_grpc
from modelstore.app import serve as serve_modelstore
from modelstore.settings import ModelstoreSettings
from prometheus_client.parser import text_string_to_metric_families

from fedcombiner.servicekit.lifecycle import Stop

PAGE: Final = Path(__file__).parents[1] / "docs" / "metrics.md"
HEAD: Final = """# Metrics

Made by `make metrics` from what each service answers at `/metrics`; `make test` proves that it is current.
Labels have few values: never a client, a job or a session. MinIO and HAProxy have metrics of their own; those
of Redis come from the combiners, from its INFO.

What is drawn of them: `deploy/grafana/`. What is watched: `deploy/prometheus/alerts.yml`, and
[runbook.md](runbook.md) for what to do.
"""

# A Redis that is not there: a combiner starts without it, and has all of its metrics.
NO_REDIS: Final = "redis://127.0.0.1:1/0"

Started = Callable[[int, int], None]
Serve = Callable[[Stop, Started], Awaitable[None]]


@dataclass(frozen=True)
class Row:
    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


def services(directory: Path) -> Mapping[str, Serve]:
    ports: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "metrics_host": "127.0.0.1", "metrics_port": 0}
    store: dict[str, Any] = {"data": directory / "models", "scratch": directory / "scratch"}
    combiner = CombinerSettings(redis_url=NO_REDIS, **ports, **store)
    modelstore = ModelstoreSettings(**ports, **store)
    discovery = DiscoverySettings(**ports)
    return {
        "combiner": lambda stop, started: serve_combiner(combiner, stop, started),
        "modelstore": lambda stop, started: serve_modelstore(modelstore, stop, started),
        "discovery-mock": lambda stop, started: serve_discovery(discovery, stop, started),
    }


async def rows(service: str, serve: Serve) -> list[Row]:
    """What a service has to tell after its first call."""
    stop = Stop()
    ports: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    running = asyncio.ensure_future(
        serve(stop, lambda port, metrics_port: ports.set_result((port, metrics_port)))
    )
    either: list[asyncio.Future[Any]] = [running, ports]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    try:
        if running.done():
            running.result()
        port, metrics_port = await ports
        if service != "discovery-mock":
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                health: Any = health_pb2_grpc.HealthStub(channel)
                await health.Check(health_pb2.HealthCheckRequest())
        async with httpx.AsyncClient(trust_env=False) as http:
            text = (await http.get(f"http://127.0.0.1:{metrics_port}/metrics")).text
    finally:
        stop.set("all is told")
        await running
    return sorted(_rows(text), key=lambda row: row.name)


def _rows(exposition: str) -> Iterator[Row]:
    for family in text_string_to_metric_families(exposition):
        if family.name.endswith("_created"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label: None for sample in family.samples for label in sample.labels if label != "le"}
        yield Row(name, family.type, tuple(labels), family.documentation)


async def page() -> str:
    """The whole text of docs/metrics.md."""
    with tempfile.TemporaryDirectory(prefix="fedcombiner-metrics-") as directory:
        tables = {name: await rows(name, serve) for name, serve in services(Path(directory)).items()}
    shared = set.intersection(*(set(table) for table in tables.values()))
    parts = [HEAD, *_table("Every service", sorted(shared, key=lambda row: row.name))]
    for name, table in tables.items():
        parts += _table(name, [row for row in table if row not in shared])
    return "\n".join(parts) + "\n"


def _table(title: str, table: list[Row]) -> Iterator[str]:
    yield from (f"## {title}", "", "| metric | type | labels | |", "|---|---|---|---|")
    for row in table:
        yield f"| `{row.name}` | {row.kind} | {', '.join(row.labels)} | {row.text} |"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(asyncio.run(page()))
