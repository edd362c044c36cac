"""Records as JSON with stable field names, and as rows for people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from fedcombiner.wire.pb.combiner.v1 import events_pb2

Row = dict[str, Any]


def _none(text: str) -> str | None:
    return text or None


def _time(seconds: float) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds") if seconds else None


def job(record: pb.Job, *, details: bool = False) -> Row:
    """`model_id` is the model that the job made, `parent_model_id` the one it works on.

    With `details`, a rejection or failure also has its explanation for people.
    """
    return {
        "job_id": record.job_id,
        "session_id": _none(record.session_id),
        "kind": pb.Kind.Name(record.kind).lower(),
        "state": pb.State.Name(record.state),
        "reason": _none(record.reason),
        "round_id": _none(record.round_id),
        "model_id": _none(record.model_id),
        "parent_model_id": _none(record.parent_model_id),
        "asked": list(record.asked),
        "accepted": list(record.accepted),
        "rejected": [_outcome(o, details) for o in record.rejected],
        "failed": [_outcome(o, details) for o in record.failed],
        "unrecorded": list(record.unrecorded),
        "started_at": _time(record.started_at),
        "ended_at": _time(record.ended_at),
    }


def _outcome(record: pb.Outcome, details: bool) -> Row:
    row = {"client": record.client, "reason": record.reason}
    return {**row, "detail": record.detail} if details and record.detail else row


def session(record: pb.Session) -> Row:
    return {
        "session_id": record.session_id,
        "state": pb.State.Name(record.state),
        "reason": _none(record.reason),
        "rounds": record.rounds,
        "rounds_done": record.rounds_done,
        "failed_rounds": record.failed_rounds,
        "seed_model_id": record.seed_model_id,
        "model_id": record.model_id,
        "created_at": _time(record.created_at),
        "started_at": _time(record.started_at),
        "ended_at": _time(record.ended_at),
        "results": [_round(r) for r in record.results],
    }


def _round(record: pb.RoundResult) -> Row:
    return {
        "round_id": record.round_id,
        "state": pb.State.Name(record.state),
        "reason": _none(record.reason),
        "job_id": record.job_id,
        "validation_job_id": _none(record.validation_job_id),
        "model_id": _none(record.model_id),
        "accepted": record.accepted,
        "metrics": dict(record.metrics),
    }


def model(record: pb.Model) -> Row:
    return {
        "model_id": record.model_id,
        "parent_model_id": _none(record.parent_model_id),
        "session_id": _none(record.session_id),
        "round_id": _none(record.round_id),
        "name": _none(record.name),
        "size": record.size,
        "sha256": record.sha256,
        "created_at": _time(record.created_at),
        "updates": record.updates,
        "num_examples": record.num_examples,
        "metrics": dict(record.metrics),
        "client_metrics": {c.client: dict(c.metrics) for c in record.client_metrics},
    }


def client(record: pb.Client) -> Row:
    return {
        "client": record.client,
        "active": record.active,
        "trainer": record.trainer,
        "validator": record.validator,
        "seen_seconds_ago": record.seen_seconds_ago,
        "era": record.era,
        "streams": record.streams,
    }


def event(record: events_pb2.Event) -> Row:
    """What a job counts is `null` where no job is concerned."""
    of_job = bool(record.job_id) and bool(record.kind)
    return {
        "at": _time(record.at),
        "what": record.what,
        "session_id": _none(record.session_id),
        "job_id": _none(record.job_id),
        "kind": pb.Kind.Name(record.kind).lower() if record.kind else None,
        "round_id": _none(record.round_id),
        "state": pb.State.Name(record.state) if record.state else None,
        "clients": list(record.clients),
        "reason": _none(record.reason),
        "text": _none(record.text),
        "asked": record.asked if of_job else None,
        "accepted": record.accepted if of_job else None,
        "rejected": record.rejected if of_job else None,
        "failed": record.failed if of_job else None,
    }
