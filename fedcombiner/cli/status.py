"""`combiner status`: how the stack is, on one screen."""

from __future__ import annotations

from collections.abc import Iterator

import typer

from fedcombiner.cli import rows
from fedcombiner.cli.output import call, options, print_json, show_one
from fedcombiner.cli.remote import remote
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2, upkeep_pb2


@remote
def status(context: typer.Context) -> None:
    """How the stack is: back ends, replicas, clients, what runs, what is queued, the newest model.

    It is answered also while Redis or the object store is away, and then says so.

    Examples:
      combiner status
      combiner status --json | jq .backends
    """
    found = call(context, lambda operator: operator.stack_status())
    server = options(context).server
    if options(context).as_json:
        print_json(rows.status(found, server))
    else:
        show_one(context, {key: list(lines) for key, lines in _screen(found, server)})


def _screen(status: upkeep_pb2.StackStatus, server: str) -> Iterator[tuple[str, Iterator[str]]]:
    """Heading and lines; what is unknown while Redis is away is left out."""
    yield "server", iter([f"{server}: {status.name} {status.version}, {status.readiness}"])
    for backend in status.backends:
        yield backend.name, iter(["up" if backend.up else f"DOWN: {backend.error or 'not seen yet'}"])
    if not status.now:
        return
    yield "replicas", iter([f"{len(status.replicas)}: {', '.join(status.replicas)}"])
    counts = f"{status.clients} active, {status.trainers} train, {status.validators} validate"
    yield "clients", iter([counts])
    yield "sessions", _with_queue((_session(s) for s in status.running_sessions), status.queued_sessions)
    yield "jobs", _with_queue((_job(job, status.now) for job in status.running_jobs), status.queued_jobs)
    yield "newest model", iter([_model(status)])


def _with_queue(running: Iterator[str], queued: int) -> Iterator[str]:
    anything = False
    for line in running:
        anything = True
        yield line
    if queued or not anything:
        yield f"{queued} queued" if queued else "none"


def _session(session: upkeep_pb2.SessionInBrief) -> str:
    return f"{session.session_id}: {session.rounds_done} of {session.rounds} rounds done"


def _job(job: upkeep_pb2.JobInBrief, now: float) -> str:
    kind = combiner_pb2.Kind.Name(job.kind).lower()
    of_round = f" of round {job.round_id}" if job.round_id else ""
    doing = f"{job.job_id}: {kind}{of_round}, {job.phase}"
    if not job.asked:
        return doing
    settled = f"{job.accepted} accepted, {job.rejected} rejected, {job.failed} failed of {job.asked}"
    left = f", {max(0.0, job.deadline_at - now):.0f} s left" if job.phase == "collecting" else ""
    return f"{doing}: {settled}{left}"


def _model(status: upkeep_pb2.StackStatus) -> str:
    if not status.HasField("newest_model"):
        return "none yet: combiner model put FILE"
    model = status.newest_model
    of_round = f" of round {model.round_id}" if model.round_id else ""
    metrics = "".join(f", {name} {value:.4g}" for name, value in sorted(model.metrics.items()))
    return f"{model.model_id}{of_round}, {_ago(status.now - model.created_at)} old{metrics}"


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
