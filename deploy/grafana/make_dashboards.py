"""The dashboards, as code: `python3 deploy/grafana/make_dashboards.py` writes dashboards/*.json beside it.

A row of the tables below is a panel: its title, its unit, and what is drawn, each with its legend. Units are
Grafana's: s, bytes, Bps, ops, percentunit, short.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

DIRECTORY: Final = Path(__file__).parent / "dashboards"
WIDTH, HEIGHT, COLUMNS = 12, 8, 2
TRANSFERS: Final = 'service=~".*ModelService"'

Panel = tuple[str, str, Mapping[str, str]]


def share(part: str, whole: str) -> str:
    """Also zero, and not nothing, where there is no part at all."""
    return f"({part} or 0 * {whole}) / ({whole} > 0)"


def quantile(q: float, histogram: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({histogram}_bucket[5m])))"


STACK: Final[Sequence[Panel]] = [
    ("Services that answer", "short", {"up": "{{instance}}"}),
    ("Back ends that answer", "short", {"min by (backend) (backend_up)": "{{backend}}"}),
    ("Clients", "short", {"sum(fedcombiner_active_clients)": "active"}),
    (
        "Work",
        "short",
        {
            "sum(fedcombiner_works)": "jobs and sessions that run",
            "sum(fedcombiner_answers_pending)": "answers not recorded yet",
        },
    ),
    ("Memory", "bytes", {"process_resident_memory_bytes": "{{instance}}"}),
    ("CPU", "short", {"rate(process_cpu_seconds_total[1m])": "{{instance}}"}),
    (
        "Redis: memory",
        "bytes",
        {"max(fedcombiner_redis_memory_bytes)": "used", "max(fedcombiner_redis_memory_max_bytes)": "limit"},
    ),
    ("Redis: commands", "ops", {"max(fedcombiner_redis_commands_per_second)": "commands"}),
    ("MinIO: free", "bytes", {"minio_cluster_capacity_usable_free_bytes": "free"}),
    (
        "Delay of the event loop, p99",
        "s",
        {quantile(0.99, "fedcombiner_event_loop_lag_seconds", "instance"): ""},
    ),
]

ROUND: Final[Sequence[Panel]] = [
    (
        "Jobs that ended",
        "short",
        {"sum by (kind, state) (increase(fedcombiner_jobs_ended_total[5m]))": "{{kind}} {{state}}"},
    ),
    ("Answers", "ops", {"sum by (verdict) (rate(fedcombiner_answers_total[1m]))": "{{verdict}}"}),
    ("Updates accepted", "ops", {"sum(rate(fedcombiner_updates_accepted_total[1m]))": "accepted"}),
    (
        "Updates rejected",
        "short",
        {"sum by (reason) (increase(fedcombiner_updates_rejected_total[5m]))": "{{reason}}"},
    ),
    (
        "From an update to the aggregate, median",
        "s",
        {quantile(0.5, f"fedcombiner_{part}_seconds"): part for part in ("checking", "folding", "writing")},
    ),
    (
        "From an update to the aggregate, p99",
        "s",
        {quantile(0.99, f"fedcombiner_{part}_seconds"): part for part in ("checking", "folding", "writing")},
    ),
    ("Streams of clients", "short", {"fedcombiner_streams": "{{instance}}"}),
    (
        "Not recorded, and lost",
        "short",
        {
            "sum(fedcombiner_answers_given_up)": "answers given up",
            "sum(fedcombiner_statuses_dropped)": "statuses dropped",
        },
    ),
]

TRANSFER: Final[Sequence[Panel]] = [
    ("Bytes of models", "Bps", {"sum by (way) (rate(fedcombiner_model_bytes_total[1m]))": "{{way}}"}),
    (
        "Transfers",
        "short",
        {
            "sum by (way) (fedcombiner_transfers_running)": "{{way}}, under way",
            "sum by (way) (fedcombiner_transfers_slow)": "{{way}}, slow",
            "sum by (way) (fedcombiner_transfers_waiting)": "{{way}}, waiting",
        },
    ),
    (
        "Transfers that gave way",
        "ops",
        {
            "sum by (way, event) (rate(fedcombiner_transfer_events_total[5m]))": "{{way}}, {{event}}",
        },
    ),
    (
        "Transfers that begin",
        "ops",
        {
            f"sum by (method) (rate(fedcombiner_rpc_started_total{{{TRANSFERS}}}[1m]))": "{{method}}",
        },
    ),
    (
        "Transfers that fail",
        "ops",
        {
            f'sum by (method, code) (rate(fedcombiner_rpc_handled_total{{{TRANSFERS},code!="OK"}}[5m]))': (
                "{{method}} {{code}}"
            ),
        },
    ),
    (
        "Through the gateway",
        "Bps",
        {
            'rate(haproxy_frontend_bytes_in_total{proxy="clients"}[1m])': "in",
            'rate(haproxy_frontend_bytes_out_total{proxy="clients"}[1m])': "out",
        },
    ),
    (
        "MinIO: traffic",
        "Bps",
        {
            "rate(minio_s3_traffic_received_bytes[1m])": "in",
            "rate(minio_s3_traffic_sent_bytes[1m])": "out",
        },
    ),
]

SERVICE: Final[Sequence[Panel]] = [
    (
        "Rate of calls",
        "ops",
        {"sum by (job, method) (rate(fedcombiner_rpc_started_total[1m]))": "{{job}} {{method}}"},
    ),
    (
        "Errors",
        "percentunit",
        {
            share(
                'sum by (job) (rate(fedcombiner_rpc_handled_total{code!~"OK|CANCELLED"}[5m]))',
                "sum by (job) (rate(fedcombiner_rpc_handled_total[5m]))",
            ): "{{job}}"
        },
    ),
    (
        "Time to the answer, p99",
        "s",
        {quantile(0.99, "fedcombiner_rpc_duration_seconds", "method"): "{{method}}"},
    ),
    (
        "Calls and streams under way",
        "short",
        {"sum by (job, method) (fedcombiner_rpc_in_flight)": "{{job}} {{method}}"},
    ),
    (
        "Discovery: answers",
        "ops",
        {
            "sum by (request, outcome) (rate(fedcombiner_discovery_answers_total[1m]))": (
                "{{request}} {{outcome}}"
            )
        },
    ),
    ("Gateway: servers up", "short", {"haproxy_backend_active_servers": "{{proxy}}"}),
]

DASHBOARDS: Final[Mapping[str, tuple[str, Sequence[Panel]]]] = {
    "stack": ("The stack", STACK),
    "round": ("The life of a round", ROUND),
    "transfer": ("Transfer of models", TRANSFER),
    "services": ("Rate, errors and duration", SERVICE),
}


def dashboard(uid: str, title: str, panels: Sequence[Panel]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "uid": f"federated-combiner-{uid}",
        "title": f"Federated Combiner: {title}",
        "tags": ["federated-combiner"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": [panel(number, source, *row) for number, row in enumerate(panels)],
    }


def panel(
    number: int, source: Mapping[str, str], title: str, unit: str, drawn: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "gridPos": {
            "x": number % COLUMNS * WIDTH,
            "y": number // COLUMNS * HEIGHT,
            "w": WIDTH,
            "h": HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": source, "expr": expression, "legendFormat": legend}
            for i, (expression, legend) in enumerate(drawn.items())
        ],
    }


def files() -> Iterator[tuple[Path, str]]:
    """Each file and what it must hold."""
    for name, (title, panels) in DASHBOARDS.items():
        yield DIRECTORY / f"{name}.json", json.dumps(dashboard(name, title, panels), indent=2) + "\n"


if __name__ == "__main__":
    for path, text in files():
        path.write_text(text)
