"""Sessions, step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from combiner.domain.config import RoundConfig
from combiner.domain.session import SessionConfig, Step, next_step
from combiner.domain.types import ClientRecord, ClientState, Job, Kind, NewJob, Session, State
from hypothesis import given, settings
from hypothesis import strategies as st


def a_session(**changes: Any) -> Session:
    return replace(Session("s1", State.RUNNING, "", "seed", "seed", {}), **changes)


def config(**changes: object) -> SessionConfig:
    return SessionConfig.parse({key: str(value) for key, value in changes.items()})


def ended(job: NewJob | None, state: State = State.SUCCEEDED, reason: str = "", **changes: Any) -> Job:
    """`job` as the journal has it when it ended; a training job made the model m-<its id>."""
    assert job is not None
    made = f"m-{job.job_id}" if job.kind is Kind.TRAINING and state is State.SUCCEEDED else ""
    record = Job(
        job_id=job.job_id,
        session_id=job.session_id,
        kind=job.kind,
        state=state,
        reason=reason,
        round_id=job.round_id,
        model_id=made,
        parent_model_id=job.parent_model_id,
        config=job.config,
        phase="",
        version=9,
        created_ms=1,
        started_ms=2,
        ended_ms=3,
    )
    return replace(record, **changes)


def test_the_first_step_trains_the_seed():
    step = next_step(a_session(), config(rounds=2, learning_rate=0.1), None)
    job = step.job
    assert job is not None
    assert (job.kind, job.round_id, job.parent_model_id, job.session_id) == (Kind.TRAINING, "1", "seed", "s1")
    assert (step.session.round, step.session.current_job_id) == (1, job.job_id)
    assert job.config == {
        "rounds": "1",
        "learning_rate": "0.1",
        "wait_for_clients": "60",
        "task": "training",
        "round_id": "1",
        "model_id": "seed",
        "session_id": "s1",
        "attempt": "1",
    }
    assert RoundConfig.parse(job.config).model_id == "seed"


def test_a_trained_model_is_validated_then_trained_on():
    conf = config(rounds=2)
    first = next_step(a_session(), conf, None)
    trained = ended(first.job, clients={"a": ClientRecord("a", ClientState.ACCEPTED, "t")})
    second = next_step(first.session, conf, trained)
    assert second.job is not None
    assert (second.job.kind, second.job.parent_model_id) == (Kind.VALIDATION, trained.model_id)
    assert second.job.config["task"] == "validation"
    assert second.job.config["rounds"] == "2"
    assert second.session.model_id == trained.model_id
    result = second.session.results[0]
    assert (result.round_id, result.job_id, result.accepted) == ("1", trained.job_id, 1)
    assert result.validation_job_id == second.job.job_id

    third = next_step(second.session, conf, ended(second.job), {"accuracy": 0.75, "loss": 2.0})
    assert third.job is not None
    assert (third.job.kind, third.job.round_id) == (Kind.TRAINING, "2")
    assert third.job.parent_model_id == trained.model_id
    assert third.session.results[0].metrics == {"accuracy": 0.75, "loss": 2.0}
    assert third.session.results[0].state is State.SUCCEEDED


def test_without_validation_rounds_follow_each_other_and_the_session_succeeds():
    conf = config(rounds=2, validate=False)
    step = next_step(a_session(), conf, None)
    step = next_step(step.session, conf, ended(step.job))
    assert step.job is not None
    assert step.job.round_id == "2"
    last = ended(step.job)
    step = next_step(step.session, conf, last)
    assert step.job is None
    assert (step.session.state, step.session.reason, step.session.current_job_id) == (State.SUCCEEDED, "", "")
    assert step.session.model_id == last.model_id
    assert [result.round_id for result in step.session.results] == ["1", "2"]


def test_a_failed_round_is_tried_again_on_the_same_model():
    conf = config()
    first = next_step(a_session(), conf, None)
    again = next_step(first.session, conf, ended(first.job, State.FAILED, "0 of 1 required updates"))
    assert first.job is not None
    assert again.job is not None
    assert again.job.job_id != first.job.job_id
    assert (again.job.round_id, again.job.parent_model_id) == ("1", "seed")
    assert again.job.config["attempt"] == "2"
    assert again.session.failed_in_a_row == 1
    assert again.session.results[0].reason == "0 of 1 required updates"
    recovered = next_step(again.session, conf, ended(again.job))
    assert recovered.session.failed_in_a_row == 0


def test_failures_in_a_row_end_the_session_with_the_last_reason():
    conf = config(max_failed_rounds=2)
    step = next_step(a_session(), conf, None)
    step = next_step(step.session, conf, ended(step.job, State.FAILED, "first"))
    step = next_step(step.session, conf, ended(step.job, State.CANCELLED, "by the operator"))
    assert step.job is None
    assert step.session.state is State.FAILED
    assert step.session.reason == "round 1 failed 2 times in a row, at last: by the operator"
    assert [result.state for result in step.session.results] == [State.FAILED, State.CANCELLED]


def test_a_single_failure_can_be_one_too_many():
    conf = config(max_failed_rounds=1)
    step = next_step(a_session(), conf, None)
    step = next_step(step.session, conf, ended(step.job, State.FAILED, "too few"))
    assert step.session.reason == "round 1 failed: too few"


def test_a_failed_validation_does_not_fail_the_session():
    conf = config(rounds=1)
    step = next_step(a_session(), conf, None)
    step = next_step(step.session, conf, ended(step.job))
    step = next_step(step.session, conf, ended(step.job, State.FAILED, "0 of 1 required answers"))
    assert step.session.state is State.SUCCEEDED
    result = step.session.results[0]
    assert (result.state, result.reason) == (State.SUCCEEDED, "validation failed: 0 of 1 required answers")


def test_there_is_nothing_to_do_while_the_job_goes_on():
    conf = config()
    first = next_step(a_session(), conf, None)
    running = replace(ended(first.job), state=State.RUNNING)
    stranger = replace(ended(first.job), job_id="another")
    for job in (None, running, stranger):
        assert next_step(first.session, conf, job) == Step(first.session)


def test_an_ended_session_stays_as_it_is():
    session = a_session(state=State.CANCELLED, reason="enough")
    assert next_step(session, config(), None) == Step(session)


def test_a_step_that_is_done_again_submits_the_same_job():
    conf = config()
    first = next_step(a_session(), conf, None)
    assert next_step(a_session(), conf, None) == first
    other = next_step(a_session(session_id="s2"), conf, None)
    assert first.job is not None
    assert other.job is not None
    assert other.job.job_id != first.job.job_id


@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.booleans(),
    st.lists(st.sampled_from([State.SUCCEEDED, State.SUCCEEDED, State.FAILED, State.CANCELLED]), max_size=60),
)
@settings(max_examples=80, deadline=None)
def test_every_session_ends(rounds: int, max_failed: int, validate: bool, fates: list[State]):
    """Whatever becomes of its jobs; each job has its own id, and trains the newest model."""
    conf = config(rounds=rounds, max_failed_rounds=max_failed, validate=validate)
    step = next_step(a_session(), conf, None)
    submitted: list[str] = []
    newest = "seed"
    fate = iter(fates)
    while step.job is not None:
        assert step.job.job_id not in submitted
        assert step.job.parent_model_id == newest
        submitted.append(step.job.job_id)
        job = ended(step.job, next(fate, State.SUCCEEDED), "as it happens")
        newest = job.model_id or newest
        step = next_step(step.session, conf, job)
    made = [result for result in step.session.results if result.state is State.SUCCEEDED]
    assert step.session.model_id == newest
    assert len(submitted) <= rounds * (max_failed + int(validate))
    if step.session.state is State.SUCCEEDED:
        assert [result.round_id for result in made] == [str(i + 1) for i in range(rounds)]
    else:
        assert step.session.state is State.FAILED
        assert "as it happens" in step.session.reason
        assert len(made) < rounds


def test_an_id_used_again_has_jobs_of_its_own():
    conf = config()
    first, second = (next_step(a_session(created_ms=created), conf, None).job for created in (1, 2))
    assert first is not None
    assert second is not None
    assert first.job_id != second.job_id


def test_a_session_goes_on_from_a_job_whose_id_was_made_by_another_release():
    """Only the record says which job is the session's."""
    conf = config()
    begun = next_step(a_session(created_ms=7), conf, None)
    assert begun.job is not None
    theirs = replace(begun.job, job_id="made-by-another-release")
    step = next_step(replace(begun.session, current_job_id=theirs.job_id), conf, ended(theirs))
    assert step.session.results[0].job_id == theirs.job_id
    assert step.job is not None
    assert step.job.kind is Kind.VALIDATION
