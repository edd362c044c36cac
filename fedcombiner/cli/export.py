"""`combiner session export`: the metrics of a session, by round and client."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Final

import typer

from fedcombiner.cli import rows
from fedcombiner.cli.output import USAGE, call, fail, options, print_json
from fedcombiner.cli.remote import remote
from fedcombiner.client.operator import OperatorClient
from fedcombiner.servicekit.errors import NotFound
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb

_OF_ROUND: Final = ("session_id", "round_id", "state", "model_id", "accepted", "started_at", "ended_at")
_COLUMNS: Final = (*_OF_ROUND, "client", "metric", "value")
_TOLD: Final = ("reported", "telemetry")
_ALL: Final = 1_000_000
_Told = Mapping[str, Mapping[str, pb.ClientReport]]


@remote
def export(
    context: typer.Context,
    session_id: str,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV, as without --json.")] = False,
) -> None:
    """The metrics of each round: their means, and what each client measured. CSV, or JSON with --json.

    CSV has a line for each metric, JSON an object for each round and client; without a client it is the mean
    over them. What clients told by themselves is `reported` and `telemetry`, in CSV metrics that begin with
    these words. What the clients measured goes when the model or the job does.

    Examples:
      combiner session export digits > digits.csv
      combiner session export digits --json | jq 'select(.client == null) | .metrics.accuracy'
    """
    if as_csv and options(context).as_json:
        raise fail("--csv and --json: choose one of them", USAGE)

    async def read(operator: OperatorClient) -> tuple[pb.Session, list[pb.Model], _Told]:
        session = await operator.get_session(session_id)
        models = await operator.list_models(session_id=session_id, limit=_ALL)
        return session, models, {r.job_id: await _told_in(operator, r) for r in session.results}

    session, models, told = call(context, read)
    table = list(_rows(session, {model.model_id: model for model in models}, told))
    if options(context).as_json:
        for row in table:
            print_json(row)
    else:
        _write_csv(table)


async def _told_in(operator: OperatorClient, result: pb.RoundResult) -> dict[str, pb.ClientReport]:
    """What each client told in the jobs of a round; nothing of those that are gone."""
    told: dict[str, pb.ClientReport] = {}
    for job_id in filter(None, (result.job_id, result.validation_job_id)):
        try:
            job = await operator.get_job(job_id)
        except NotFound:
            continue
        for report in job.reports:
            told.setdefault(report.client, pb.ClientReport()).MergeFrom(report)
    return told


def _rows(session: pb.Session, models: Mapping[str, pb.Model], told: _Told) -> Iterator[rows.Row]:
    """Of each tried round one with the means, then one of each client by name."""
    for result in session.results:
        of_round = {"session_id": session.session_id, **rows.exported_round(result)}
        yield {**of_round, "client": None, **_values(result.metrics, result.reported, result.telemetry)}
        model = models.get(result.model_id)
        measured = {one.client: one.metrics for one in model.client_metrics} if model else {}
        reports = told[result.job_id]
        for client in sorted({*measured, *reports}):
            report = reports.get(client, pb.ClientReport())
            values = _values(measured.get(client, {}), report.metrics, report.telemetry)
            yield {**of_round, "client": client, **values}


def _values(
    metrics: Mapping[str, float], reported: Mapping[str, float], telemetry: Mapping[str, float]
) -> rows.Row:
    return {"metrics": dict(metrics), "reported": dict(reported), "telemetry": dict(telemetry)}


def _write_csv(table: list[rows.Row]) -> None:
    """One line for each metric, and for a round without any."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in table:
        start = [row[column] for column in (*_OF_ROUND, "client")]
        told = [(f"{kind}.{name}", row[kind][name]) for kind in _TOLD for name in sorted(row[kind])]
        for metric, value in [*sorted(row["metrics"].items()), *told] or [(None, None)]:
            writer.writerow([*start, metric, value])
