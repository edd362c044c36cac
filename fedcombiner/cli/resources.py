"""Models, sessions, jobs and clients of a running combiner."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fedcombiner.cli import rows
from fedcombiner.cli.output import (
    JOB_FAILED,
    USAGE,
    WATCH_PATIENCE_S,
    call,
    fail,
    options,
    print_json,
    show_list,
    show_one,
)
from fedcombiner.cli.remote import remote
from fedcombiner.client.operator import OperatorClient
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb

models = typer.Typer(help="Put, get, list and prune models.", no_args_is_help=True)
sessions = typer.Typer(
    help="Start, watch, cancel and export sessions: many rounds on one model.", no_args_is_help=True
)
jobs = typer.Typer(help="Look at, watch and cancel jobs: single rounds.", no_args_is_help=True)

Limit = Annotated[int, typer.Option(min=0, help="The newest N; 0: as many as the server shows.")]


@remote
def clients(
    context: typer.Context,
    all: Annotated[bool, typer.Option(help="Also those that are away.")] = False,
    wide: Annotated[bool, typer.Option(help="With telemetry, attributes and metrics they told.")] = False,
) -> None:
    """Who is connected.

    Examples:
      combiner clients
      combiner clients --wide
      combiner clients --all --json | jq -r 'select(.active | not) | .client'
    """
    found = call(context, lambda operator: operator.list_clients(all=all, details=wide))
    columns = ("client", "active", "trainer", "validator", "seen_seconds_ago", "era")
    more = ("name", "telemetry", "attributes", "metrics")
    row = rows.wide_client if wide else rows.client
    shown = columns + more if wide else columns
    show_list(context, [row(c) for c in found], shown, "No client is connected.")


@models.command("put")
@remote
def model_put(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="An .npz file.")],
    name: Annotated[str, typer.Option(help="A note for people.")] = "",
) -> None:
    """Upload a model, for a session to start from.

    Example:
      combiner model put seed.npz --name 'first try'
    """
    model = call(context, lambda operator: operator.put_model(file, name=name))
    show_one(context, rows.model(model))


@models.command("get")
@remote
def model_get(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(dir_okay=False, help="Where to; appears whole or not at all.")],
    model_id: Annotated[str, typer.Argument(help="The newest global model if none is named.")] = "",
) -> None:
    """Download a model: the newest global one, or the one that is named.

    Examples:
      combiner model get newest.npz
      combiner model get old.npz 0b5c8d2e-1111-4222-8333-444455556666
    """
    model = call(context, lambda operator: operator.get_model(model_id, file))
    show_one(context, rows.model(model))


@models.command("list")
@remote
def model_list(context: typer.Context, session: str = "", limit: Limit = 0) -> None:
    """List models, oldest first, with the metrics of their validations.

    Examples:
      combiner model list --limit 5
      combiner model list --session digits --json | jq .metrics
    """
    found = call(context, lambda operator: operator.list_models(session_id=session, limit=limit))
    columns = ("model_id", "parent_model_id", "round_id", "size", "updates", "metrics", "created_at")
    show_list(context, [rows.model(m) for m in found], columns, "No model yet: `combiner model put FILE`.")


@sessions.command("start")
@remote
def session_start(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Model to start from; the newest if none is named.")] = "",
    session_id: Annotated[str, typer.Option(help="A name of your own.")] = "",
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of docs/sessions.md; repeatable."),
    ] = None,
    watch: Annotated[bool, typer.Option(help="Stay and watch it.")] = False,
) -> None:
    """Start a session. It goes on when this terminal is closed.

    Examples:
      combiner session start --rounds 10 --watch
      combiner session start --session-id digits --model seed --set clients_required=3 --set round_timeout=60
    """
    config: dict[str, object] = {"rounds": rounds}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise fail(f"--set {setting}: say KEY=VALUE, such as --set clients_required=3", USAGE)
        config[key] = value
    session = call(
        context, lambda operator: operator.start_session(config, model_id=model, session_id=session_id)
    )
    if watch:
        _watch_session(context, session.session_id)
    else:
        show_one(context, rows.session(session))


@sessions.command("show")
@remote
def session_show(context: typer.Context, session_id: str) -> None:
    """One session with its rounds.

    Example:
      combiner session show digits
    """
    show_one(context, rows.session(call(context, lambda operator: operator.get_session(session_id))))


@sessions.command("list")
@remote
def session_list(context: typer.Context, limit: Limit = 0) -> None:
    """List sessions, oldest first.

    Example:
      combiner session list --limit 10
    """
    found = call(context, lambda operator: operator.list_sessions(limit))
    columns = ("session_id", "state", "rounds_done", "rounds", "failed_rounds", "reason", "created_at")
    show_list(context, [rows.session(s) for s in found], columns, "No session yet: `combiner session start`.")


@sessions.command("watch")
@remote
def session_watch(context: typer.Context, session_id: str) -> None:
    """Follow a session to its end. Exit code 1 if it did not succeed.

    Examples:
      combiner session watch digits
      combiner session watch digits --json | jq .rounds_done
    """
    _watch_session(context, session_id)


@sessions.command("cancel")
@remote
def session_cancel(context: typer.Context, session_id: str) -> None:
    """End a session and its job at once.

    Example:
      combiner session cancel digits
    """
    show_one(context, rows.session(call(context, lambda operator: operator.cancel_session(session_id))))


@jobs.command("show")
@remote
def job_show(context: typer.Context, job_id: str) -> None:
    """One job: who was asked, who is in the aggregate, who was rejected or left out and why.

    Examples:
      combiner job show 0b5c8d2e-1111-4222-8333-444455556666
      combiner job show 0b5c8d2e-1111-4222-8333-444455556666 --json | jq '.rejected[]'
    """
    job = call(context, lambda operator: operator.get_job(job_id))
    show_one(context, rows.whole_job(job, details=not options(context).as_json))


@jobs.command("list")
@remote
def job_list(context: typer.Context, session: str = "", limit: Limit = 0) -> None:
    """List jobs, oldest first.

    Examples:
      combiner job list --session digits
      combiner job list --json | jq -r 'select(.state == "FAILED") | .reason'
    """
    found = call(context, lambda operator: operator.list_jobs(session_id=session, limit=limit))
    columns = ("job_id", "kind", "state", "round_id", "model_id", "reason", "started_at")
    show_list(context, [rows.job(j) for j in found], columns, "No job yet.")


@jobs.command("watch")
@remote
def job_watch(context: typer.Context, job_id: str) -> None:
    """Follow a job to its end. Exit code 1 if it did not succeed.

    Example:
      combiner job watch 0b5c8d2e-1111-4222-8333-444455556666
    """
    as_json = options(context).as_json

    async def follow(operator: OperatorClient) -> pb.Job:
        job = pb.Job()
        with bars(not as_json) as progress:
            bar = progress.add_task(job_id[:8], total=None)
            async for event in operator.watch_job(job_id):
                job = event.job if event.HasField("job") else job
                show_progress(progress, bar, event)
        return job

    job = call(context, follow, patience=WATCH_PATIENCE_S)
    show_one(context, _job_row(context, job))
    if job.state != pb.SUCCEEDED:
        raise typer.Exit(JOB_FAILED)


@jobs.command("cancel")
@remote
def job_cancel(context: typer.Context, job_id: str) -> None:
    """End a job at once.

    Example:
      combiner job cancel 0b5c8d2e-1111-4222-8333-444455556666
    """
    show_one(context, _job_row(context, call(context, lambda operator: operator.cancel_job(job_id))))


def _job_row(context: typer.Context, job: pb.Job) -> rows.Row:
    """People also want to read why, in words."""
    return rows.job(job, details=not options(context).as_json)


def bars(visible: bool, console: Console | None = None) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, disable=not visible, console=console or Console(stderr=True))


def show_progress(progress: Progress, bar: Any, event: pb.JobEvent) -> None:
    """Answers that are settled, of those asked."""
    settled = event.accepted + event.rejected + event.failed
    progress.update(bar, completed=settled, total=event.asked or None)


def _watch_session(context: typer.Context, session_id: str) -> None:
    as_json = options(context).as_json

    async def follow(operator: OperatorClient) -> pb.Session:
        session = pb.Session()
        events: AsyncGenerator[pb.SessionEvent, None] = operator.watch_session(session_id)
        with bars(not as_json) as progress:
            bar = progress.add_task("waiting", total=None)
            async for event in events:
                if event.HasField("job"):
                    show_progress(progress, bar, event.job)
                    continue
                session = event.session
                progress.update(bar, description=f"round {session.rounds_done + 1}/{session.rounds}")
                if as_json:
                    print_json(rows.session(session))
        return session

    session = call(context, follow, patience=WATCH_PATIENCE_S)
    if not as_json:
        show_one(context, rows.session(session))
    if session.state != pb.SUCCEEDED:
        raise typer.Exit(JOB_FAILED)
