"""What clients tell beside their answers: metrics, telemetry, attributes; the last value of each name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from combiner.adapters import codec
from combiner.adapters.connection import Connection
from combiner.ports import Report, Reported, ReportKind

_PAGE = 200


class RedisReports:
    """`ports.Reports`."""

    def __init__(self, connection: Connection) -> None:
        self._run = connection.run

    async def add(self, reports: Sequence[Report]) -> None:
        rows = [(r.client, r.kind, dict(r.values), r.session_id, r.round_id, r.model_id) for r in reports]
        if rows:
            await self._run("reports_add", entries=rows)

    async def of_clients(self, clients: Sequence[str]) -> list[Reported]:
        found: list[Reported] = []
        for start in range(0, len(clients), _PAGE):
            page = list(clients[start : start + _PAGE])
            found += [_of_client(flat) for flat in await self._run("reports_clients", clients=page)]
        return found

    async def of_jobs(self, job_ids: Sequence[str]) -> list[Mapping[str, Reported]]:
        rows = await self._run("reports_jobs", ids=list(job_ids)) if job_ids else []
        return [
            {client: _reported(json.loads(text)) for client, text in sorted(codec.pairs(flat).items())}
            for flat in rows
        ]


def _of_client(flat: Sequence[str]) -> Reported:
    kept: dict[str, dict[str, str]] = {}
    for key, text in codec.pairs(flat).items():
        kind, _, name = key.partition(":")
        kept.setdefault(kind, {})[name] = text
    return _reported(kept)


def _reported(kept: Mapping[str, Mapping[str, str]]) -> Reported:
    return Reported(
        metrics=_numbers(kept.get(ReportKind.METRIC, {})),
        telemetry=_numbers(kept.get(ReportKind.TELEMETRY, {})),
        attributes=dict(sorted(kept.get(ReportKind.ATTRIBUTE, {}).items())),
    )


def _numbers(values: Mapping[str, str]) -> Mapping[str, float]:
    return {name: float(text) for name, text in sorted(values.items())}
