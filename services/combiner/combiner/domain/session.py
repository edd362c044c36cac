"""A session step by step: what follows when its job has ended.

Each round is a training job and, if it made a model and `validate` is on, a validation job of that model. A
failed round is tried again on the same model; `max_failed_rounds` failures in a row end the session. A failed
validation does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final
from uuid import UUID, uuid5

from combiner.domain.config import RoundConfig
from combiner.domain.params import Params
from combiner.domain.types import ClientState, Job, Kind, NewJob, RoundResult, Session, State

MAX_ROUNDS = 10_000
NO_METRICS: Final[Mapping[str, float]] = MappingProxyType({})
_WAIT_FOR_CLIENTS = "60"
_JOB_IDS = UUID("6f0d9b58-58a4-4f0c-9d43-4c3b0c1f5a7e")
# FEDn's names of keys that a round knows under another one.
SYNONYMS = {
    "round_buffer_size": "buffer_size",
    "min_clients": "clients_required",
    "requested_clients": "clients_requested",
    "helper": "helper_type",
    "delete_models": "delete_models_storage",
}
# A session sets these for each of its jobs.
_OWN = ("task", "round_id", "model_id", "session_id", "attempt")


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """A session that can run. `round` is what its rounds have in common, under the names a round knows."""

    rounds: int
    validate: bool
    max_failed_rounds: int
    round: Mapping[str, str]

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> SessionConfig:
        """Raises ConfigError naming the first key whose value cannot run, of the session or of its rounds."""
        params = Params(given)
        common = {key: value for key, value in given.items() if key not in SYNONYMS and key not in _OWN}
        for theirs, ours in SYNONYMS.items():
            if theirs in given and params.get(ours) is None:
                common[ours] = given[theirs]
        if params.get("wait_for_clients") is None:
            common["wait_for_clients"] = _WAIT_FOR_CLIENTS
        RoundConfig.parse({**common, "task": Kind.TRAINING, "model_id": "any", "round_id": "1"})
        return cls(
            rounds=params.integer("rounds", 5, at_least=1, at_most=MAX_ROUNDS),
            validate=params.boolean("validate", True),
            max_failed_rounds=params.integer("max_failed_rounds", 3, at_least=1, at_most=MAX_ROUNDS),
            round=common,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """The session as it is to be recorded, and the job to submit with it, if any."""

    session: Session
    job: NewJob | None = None


def next_step(
    session: Session,
    config: SessionConfig,
    finished: Job | None,
    metrics: Mapping[str, float] = NO_METRICS,
) -> Step:
    """What to do with a running session whose current job is `finished` (None: it has not ended); `metrics`
    are the means of a finished validation.

    The same session comes back when there is nothing to do: it ended, or its job goes on. The same session
    and job give the same step with the same job id, so a step that was cut off can be done again.
    """
    if session.state.ended:
        return Step(session)
    if not session.current_job_id:
        return _train(session, config, session.round or 1)
    if finished is None or finished.job_id != session.current_job_id or not finished.state.ended:
        return Step(session)
    if finished.kind is Kind.TRAINING:
        return _after_training(session, config, finished)
    return _after_round(_with_metrics(session, finished, metrics), config)


def _after_training(session: Session, config: SessionConfig, job: Job) -> Step:
    if job.state is not State.SUCCEEDED:
        return _after_failure(_with_result(session, job), config)
    session = replace(_with_result(session, job), model_id=job.model_id, failed_in_a_row=0)
    return _validate(session, config) if config.validate else _after_round(session, config)


def _after_round(session: Session, config: SessionConfig) -> Step:
    if session.round < config.rounds:
        return _train(session, config, session.round + 1)
    return _end(session, State.SUCCEEDED, "")


def _after_failure(session: Session, config: SessionConfig) -> Step:
    failed = session.failed_in_a_row + 1
    session = replace(session, failed_in_a_row=failed)
    if failed < config.max_failed_rounds:
        return _train(session, config, session.round)
    times = "failed" if failed == 1 else f"failed {failed} times in a row, at last"
    return _end(session, State.FAILED, f"round {session.round} {times}: {session.results[-1].reason}")


def _end(session: Session, state: State, reason: str) -> Step:
    return Step(replace(session, state=state, reason=reason, current_job_id=""))


def _train(session: Session, config: SessionConfig, number: int) -> Step:
    session = replace(session, state=State.RUNNING, round=number)
    attempt = 1 + session.failed_in_a_row  # all of them in this round: the next one follows a success
    # As FEDn has it: to the clients each training job is one round.
    return _submit(session, _new_job(session, config, Kind.TRAINING, attempt, {"rounds": "1"}))


def _validate(session: Session, config: SessionConfig) -> Step:
    job = _new_job(session, config, Kind.VALIDATION, 1, {"rounds": str(config.rounds)})
    result = replace(session.results[-1], validation_job_id=job.job_id)
    return _submit(replace(session, results=(*session.results[:-1], result)), job)


def _submit(session: Session, job: NewJob) -> Step:
    return Step(replace(session, current_job_id=job.job_id), job)


def _new_job(
    session: Session, config: SessionConfig, kind: Kind, attempt: int, more: Mapping[str, str]
) -> NewJob:
    round_id = str(session.round)
    own = {
        "task": str(kind),
        "round_id": round_id,
        "model_id": session.model_id,
        "session_id": session.session_id,
        "attempt": str(attempt),
    }
    # A session that had this id before may have left jobs behind: it was created at another time. And a round
    # that a failover of Redis took back makes another model: what clients say of the first is of another job.
    name = (session.session_id, str(session.created_ms), round_id, str(attempt), kind, session.model_id)
    return NewJob(
        job_id=str(uuid5(_JOB_IDS, "/".join(name))),
        session_id=session.session_id,
        kind=kind,
        round_id=round_id,
        parent_model_id=session.model_id,
        config={**config.round, **more, **own},
    )


def _with_result(session: Session, job: Job) -> Session:
    result = RoundResult(
        round_id=str(session.round),
        job_id=job.job_id,
        state=job.state,
        reason=job.reason,
        model_id=job.model_id if job.state is State.SUCCEEDED else "",
        accepted=len(job.of_state(ClientState.ACCEPTED)),
        started_ms=job.started_ms,
        ended_ms=job.ended_ms,
    )
    return replace(session, results=(*session.results, result))


def _with_metrics(session: Session, job: Job, metrics: Mapping[str, float]) -> Session:
    """A validation ended: its metrics, and why if it failed, belong to the round that made the model."""
    reason = "" if job.state is State.SUCCEEDED else f"validation {job.state.lower()}: {job.reason}"
    result = replace(session.results[-1], metrics=metrics, reason=reason, ended_ms=job.ended_ms)
    return replace(session, results=(*session.results[:-1], result))
