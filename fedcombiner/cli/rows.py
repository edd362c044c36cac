"""Records as JSON with stable field names, and as rows for people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fedcombiner.client.backup import BackupFile
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from fedcombiner.wire.pb.combiner.v1 import events_pb2, tokens_pb2, upkeep_pb2

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


def whole_job(record: pb.Job, *, details: bool = False) -> Row:
    """Also the format of the model, and the active clients that could not take part."""
    return {
        **job(record, details=details),
        "format": _none(record.format),
        "left_out": [_outcome(o, details=True) for o in record.left_out],
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
        "reported": dict(record.reported),
        "telemetry": dict(record.telemetry),
    }


def exported_round(record: pb.RoundResult) -> Row:
    """What an export says of a round beside its metrics."""
    return {
        "round_id": record.round_id,
        "state": pb.State.Name(record.state),
        "model_id": _none(record.model_id),
        "accepted": record.accepted,
        "started_at": _time(record.started_at),
        "ended_at": _time(record.ended_at),
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


def wide_client(record: pb.Client) -> Row:
    """Also what it told of itself."""
    return {
        **client(record),
        "name": _none(record.name),
        "telemetry": dict(record.report.telemetry),
        "attributes": dict(record.report.attributes),
        "metrics": dict(record.report.metrics),
    }


def token(record: tokens_pb2.Token) -> Row:
    return {
        "token_id": record.token_id,
        "role": record.role,
        "name": _none(record.name),
        "clients": list(record.clients),
        "state": record.state,
        "created_at": _time(record.created_at),
        "expires_at": _time(record.expires_at),
        "revoked_at": _time(record.revoked_at),
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


def removal(record: upkeep_pb2.Removal, *, removed: bool) -> Row:
    return {
        "kind": record.kind,
        "id": record.id,
        "why": record.why,
        "size": record.size,
        "session_id": _none(record.session_id),
        "removed": removed,
    }


def status(record: upkeep_pb2.StackStatus, server: str) -> Row:
    """What only Redis knows is `null` while it is away."""
    known = bool(record.now)
    return {
        "server": server,
        "name": record.name,
        "version": record.version,
        "replica": record.replica,
        "readiness": record.readiness,
        "backends": {b.name: {"up": b.up, "error": _none(b.error)} for b in record.backends},
        "replicas": list(record.replicas) if known else None,
        "clients": record.clients if known else None,
        "trainers": record.trainers if known else None,
        "validators": record.validators if known else None,
        "sessions": [_session_in_brief(s) for s in record.running_sessions] if known else None,
        "queued_sessions": record.queued_sessions if known else None,
        "jobs": [_job_in_brief(j) for j in record.running_jobs] if known else None,
        "queued_jobs": record.queued_jobs if known else None,
        "newest_model": model(record.newest_model) if record.HasField("newest_model") else None,
        "at": _time(record.now),
    }


def _session_in_brief(record: upkeep_pb2.SessionInBrief) -> Row:
    return {
        "session_id": record.session_id,
        "state": pb.State.Name(record.state),
        "rounds_done": record.rounds_done,
        "rounds": record.rounds,
        "current_job_id": _none(record.current_job_id),
    }


def _job_in_brief(record: upkeep_pb2.JobInBrief) -> Row:
    return {
        "job_id": record.job_id,
        "kind": pb.Kind.Name(record.kind).lower(),
        "state": pb.State.Name(record.state),
        "phase": _none(record.phase),
        "round_id": _none(record.round_id),
        "session_id": _none(record.session_id),
        "asked": record.asked,
        "accepted": record.accepted,
        "rejected": record.rejected,
        "failed": record.failed,
        "deadline_at": _time(record.deadline_at),
    }


def backup(record: BackupFile, file: str) -> Row:
    return {
        "file": file,
        "created_at": record.header.created_at,
        "software": record.header.software,
        "schema": record.header.schema,
        "sessions": record.counts["session"],
        "jobs": record.counts["job"],
        "models": record.counts["model"],
        "missing_models": list(record.end.missing_models),
    }


def restored(record: upkeep_pb2.RestoreReply) -> Row:
    return {
        "restored": dict(record.restored),
        "known": dict(record.known),
        "missing_models": list(record.missing_models),
        "missing": record.missing,
    }
