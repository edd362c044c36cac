"""Records of the domain as messages of combiner.v1."""

from __future__ import annotations

from combiner.domain.types import (
    ClientState,
    Job,
    Kind,
    Model,
    Outcome,
    Presence,
    RoundResult,
    Session,
    State,
)
from combiner.ports import Event, Reported, outcomes
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from fedcombiner.wire.pb.combiner.v1 import events_pb2, upkeep_pb2

KINDS = {Kind.TRAINING: pb.TRAINING, Kind.VALIDATION: pb.VALIDATION, Kind.INFERENCE: pb.INFERENCE}
STATES = {state: pb.State.Value(state.value) for state in State}


def seconds(ms: int) -> float:
    return ms / 1000


def state(text: str) -> pb.State.ValueType:
    return STATES[State(text)] if text else pb.STATE_UNSPECIFIED


def job(record: Job) -> pb.Job:
    """Without the answers to a validation or inference."""
    rejected, failed = outcomes(record)
    return pb.Job(
        job_id=record.job_id,
        session_id=record.session_id,
        kind=KINDS[record.kind],
        state=STATES[record.state],
        reason=record.reason,
        round_id=record.round_id,
        model_id=record.model_id,
        parent_model_id=record.parent_model_id,
        asked=sorted(record.clients),
        accepted=[r.client for r in record.of_state(ClientState.ACCEPTED)],
        received=[r.client for r in record.of_state(ClientState.RECEIVED)],
        rejected=[outcome(o) for o in rejected],
        failed=[outcome(o) for o in failed],
        unrecorded=record.unrecorded,
        created_at=seconds(record.created_ms),
        started_at=seconds(record.started_ms),
        ended_at=seconds(record.ended_ms),
        deadline_at=seconds(record.deadline_ms),
        config=record.config,
        phase=record.phase,
        version=record.version,
        timings=record.timings,
        format=record.format,
        left_out=[outcome(o) for o in record.left_out],
    )


def outcome(record: Outcome) -> pb.Outcome:
    return pb.Outcome(client=record.client, reason=record.reason, detail=record.detail)


def job_event(event: Event) -> pb.JobEvent:
    return pb.JobEvent(
        job_id=event.job_id,
        session_id=event.session_id,
        what=event.what,
        state=state(event.state),
        client=event.client,
        reason=event.reason,
        at=seconds(event.at_ms),
        asked=event.asked,
        accepted=event.accepted,
        rejected=event.rejected,
        failed=event.failed,
        version=event.version,
    )


def event(record: Event, cursor: str) -> events_pb2.Event:
    return events_pb2.Event(
        what=record.what,
        job_id=record.job_id,
        session_id=record.session_id,
        round_id=record.round_id,
        kind=KINDS[Kind(record.kind)] if record.kind else pb.KIND_UNSPECIFIED,
        state=state(record.state),
        clients=record.clients or ([record.client] if record.client else []),
        reason=record.reason,
        text=record.text,
        at=seconds(record.at_ms),
        asked=record.asked,
        accepted=record.accepted,
        rejected=record.rejected,
        failed=record.failed,
        cursor=cursor,
    )


def job_snapshot(record: Job, message: pb.Job) -> pb.JobEvent:
    return pb.JobEvent(
        job_id=record.job_id,
        session_id=record.session_id,
        what="snapshot",
        state=message.state,
        reason=record.reason,
        at=message.ended_at or message.started_at or message.created_at,
        asked=len(message.asked),
        accepted=len(message.accepted),
        rejected=len(message.rejected),
        failed=len(message.failed),
        version=record.version,
        job=message,
    )


def session(record: Session) -> pb.Session:
    """With the results of the round under way only."""
    return pb.Session(
        session_id=record.session_id,
        state=STATES[record.state],
        reason=record.reason,
        seed_model_id=record.seed_model_id,
        model_id=record.model_id,
        rounds=int(record.config.get("rounds", "0")),
        rounds_done=record.rounds_done,
        failed_rounds=record.failed_rounds,
        created_at=seconds(record.created_ms),
        started_at=seconds(record.started_ms),
        ended_at=seconds(record.ended_ms),
        config=record.config,
        results=[round_result(r) for r in record.results],
        current_job_id=record.current_job_id,
        version=record.version,
    )


def session_in_brief(record: Session) -> upkeep_pb2.SessionInBrief:
    message = session(record)
    return upkeep_pb2.SessionInBrief(
        session_id=message.session_id,
        state=message.state,
        rounds_done=message.rounds_done,
        rounds=message.rounds,
        current_job_id=message.current_job_id,
    )


def job_in_brief(record: Job) -> upkeep_pb2.JobInBrief:
    rejected, failed = outcomes(record)
    return upkeep_pb2.JobInBrief(
        job_id=record.job_id,
        kind=KINDS[record.kind],
        state=STATES[record.state],
        phase=record.phase,
        round_id=record.round_id,
        session_id=record.session_id,
        asked=len(record.clients),
        accepted=len(record.of_state(ClientState.ACCEPTED)),
        rejected=len(rejected),
        failed=len(failed),
        deadline_at=seconds(record.deadline_ms),
    )


def round_result(record: RoundResult) -> pb.RoundResult:
    return pb.RoundResult(
        round_id=record.round_id,
        job_id=record.job_id,
        validation_job_id=record.validation_job_id,
        state=STATES[record.state],
        reason=record.reason,
        model_id=record.model_id,
        metrics=record.metrics,
        started_at=seconds(record.started_ms),
        ended_at=seconds(record.ended_ms),
        accepted=record.accepted,
    )


def model(record: Model) -> pb.Model:
    return pb.Model(
        model_id=record.model_id,
        parent_model_id=record.parent_model_id,
        session_id=record.session_id,
        round_id=record.round_id,
        job_id=record.job_id,
        size=record.size,
        sha256=record.sha256,
        created_at=seconds(record.created_ms),
        updates=record.updates,
        num_examples=record.num_examples,
        metrics=record.metrics,
        client_metrics=[
            pb.ClientMetrics(client=name, metrics=metrics)
            for name, metrics in sorted(record.client_metrics.items())
        ],
        name=record.name,
    )


def report(client: str, record: Reported) -> pb.ClientReport:
    return pb.ClientReport(
        client=client, metrics=record.metrics, telemetry=record.telemetry, attributes=record.attributes
    )


def client(record: Presence, window_ms: int) -> pb.Client:
    active = record.streams > 0 and 0 <= record.seen_ms_ago < window_ms
    return pb.Client(
        client=record.client,
        active=active,
        trainer=record.trainer_streams > 0,
        validator=record.validator_streams > 0,
        seen_seconds_ago=record.seen_ms_ago / 1000 if record.seen_ms_ago >= 0 else -1,
        era=record.era,
        streams=record.streams,
        name=record.name,
    )
