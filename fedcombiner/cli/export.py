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
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb

_OF_ROUND: Final = ("session_id", "round_id", "state", "model_id", "accepted", "started_at", "ended_at")
_COLUMNS: Final = (*_OF_ROUND, "client", "metric", "value")
_ALL: Final = 1_000_000


@remote
def export(
    context: typer.Context,
    session_id: str,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV, as without --json.")] = False,
) -> None:
    """The metrics of each round: their means, and what each client measured. CSV, or JSON with --json.

    CSV has a line for each metric, JSON an object for each round and client; without a client it is the mean
    over them. What the clients measured goes when the model or the job of its validation does.

    Examples:
      combiner session export digits > digits.csv
      combiner session export digits --json | jq 'select(.client == null) | .metrics.accuracy'
    """
    if as_csv and options(context).as_json:
        raise fail("--csv and --json: choose one of them", USAGE)

    async def read(operator: OperatorClient) -> tuple[pb.Session, list[pb.Model]]:
        return (
            await operator.get_session(session_id),
            await operator.list_models(session_id=session_id, limit=_ALL),
        )

    session, models = call(context, read)
    table = list(_rows(session, {model.model_id: model for model in models}))
    if options(context).as_json:
        for row in table:
            print_json(row)
    else:
        _write_csv(table)


def _rows(session: pb.Session, models: Mapping[str, pb.Model]) -> Iterator[rows.Row]:
    """Of each tried round one with the means, then one of each client by name."""
    for result in session.results:
        of_round = {"session_id": session.session_id, **rows.exported_round(result)}
        yield {**of_round, "client": None, "metrics": dict(result.metrics)}
        model = models.get(result.model_id)
        for measured in model.client_metrics if model else ():
            yield {**of_round, "client": measured.client, "metrics": dict(measured.metrics)}


def _write_csv(table: list[rows.Row]) -> None:
    """One line for each metric, and for a round without any."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in table:
        start = [row[column] for column in (*_OF_ROUND, "client")]
        for metric, value in sorted(row["metrics"].items()) or [(None, None)]:
            writer.writerow([*start, metric, value])
