"""The round policy, rule by rule."""

from __future__ import annotations

import pytest
from combiner.domain.config import RoundConfig
from combiner.domain.round import Close, Failed, RoundPolicy, Succeeded, Wait, Why, too_few_clients
from combiner.domain.types import ClientRecord, ClientState, Job, Kind, State

DEADLINE = 100.0


def config(task: str = "training", **changes: object) -> RoundConfig:
    texts = {key: str(value) for key, value in changes.items()}
    return RoundConfig.parse({"task": task, "model_id": "m", "round_id": "1", **texts})


def policy(asked: int = 5, **changes: object) -> RoundPolicy:
    return RoundPolicy([f"c{i}" for i in range(asked)], config(**changes), DEADLINE)


def accept(policy: RoundPolicy, *clients: int, now: float = 1.0) -> None:
    for i in clients:
        policy.received(f"c{i}")
        policy.accepted(f"c{i}", now)


def test_it_waits_for_the_deadline():
    p = policy()
    assert p.decide(0.0) == Wait(DEADLINE)
    assert p.waiting_for() == ["c0", "c1", "c2", "c3", "c4"]


def test_it_closes_when_the_last_asked_client_was_judged():
    p = policy(3, clients_required=3)
    accept(p, 0, 1)
    p.received("c2")
    assert p.decide(2.0) == Wait(DEADLINE)
    p.accepted("c2", 3.0)
    assert p.decide(3.0) == Close(Why.GOAL)
    assert p.verdict() == Succeeded()


def test_a_rejected_last_answer_closes_too():
    p = policy(3, clients_required=2)
    accept(p, 0, 1)
    p.received("c2")
    p.rejected("c2")
    assert p.decide(3.0) == Close(Why.ANSWERED)
    assert p.verdict() == Succeeded()


def test_known_failures_end_the_round_early():
    p = policy(3, clients_required=1)
    accept(p, 0)
    p.failed("c1")
    assert p.decide(2.0) == Wait(DEADLINE)
    p.failed("c2")
    assert p.decide(2.0) == Close(Why.ANSWERED)


def test_over_selection_closes_at_the_number_requested():
    p = policy(12, clients_requested=8, over_selection=1.5)
    accept(p, *range(7))
    assert isinstance(p.decide(2.0), Wait)
    accept(p, 7)
    assert p.decide(2.0) == Close(Why.GOAL)


def test_buffer_size_closes_a_training_round():
    p = policy(5, buffer_size=2)
    accept(p, 0)
    assert isinstance(p.decide(1.0), Wait)
    accept(p, 1)
    assert p.decide(1.0) == Close(Why.GOAL)


def test_buffer_size_smaller_than_required_does_not_end_a_round_without_success():
    p = policy(5, buffer_size=1, clients_required=3)
    accept(p, 0)
    assert isinstance(p.decide(1.0), Wait)
    accept(p, 1, 2)
    assert p.decide(1.0) == Close(Why.GOAL)


def test_a_validation_has_no_buffer():
    p = policy(3, task="validation", buffer_size=1)
    p.accepted("c0", 1.0)
    assert isinstance(p.decide(1.0), Wait)


def test_an_answer_of_a_validation_is_accepted_at_once():
    p = policy(2, task="validation", clients_required=2)
    p.accepted("c0", 1.0)
    p.accepted("c1", 1.0)
    assert p.decide(1.0) == Close(Why.GOAL)


def test_the_deadline_closes_with_what_is_there():
    p = policy(5, clients_required=3)
    accept(p, 0, 1, 2)
    assert p.decide(99.9) == Wait(DEADLINE)
    assert p.decide(100.0) == Close(Why.DEADLINE)
    assert p.verdict() == Succeeded()


def test_the_deadline_does_not_wait_for_a_judgement_but_the_verdict_counts_it():
    p = policy(5, clients_required=3)
    accept(p, 0, 1)
    p.received("c2")
    assert p.decide(100.0) == Close(Why.DEADLINE)
    p.accepted("c2", 101.0)
    assert p.decide(101.0) == Close(Why.DEADLINE)
    assert p.verdict() == Succeeded()


def test_grace_starts_when_enough_are_accepted():
    p = policy(5, clients_required=2, grace=10)
    accept(p, 0, now=20.0)
    assert p.decide(25.0) == Wait(DEADLINE)
    accept(p, 1, now=30.0)
    assert p.decide(30.0) == Wait(40.0)
    accept(p, 2, now=35.0)
    assert p.decide(39.9) == Wait(40.0)
    assert p.decide(40.0) == Close(Why.GRACE)


def test_grace_does_not_outlast_the_deadline():
    p = policy(5, clients_required=1, grace=1000)
    accept(p, 0, now=20.0)
    assert p.decide(20.0) == Wait(DEADLINE)


def test_it_gives_up_as_soon_as_the_required_number_cannot_be_reached():
    p = policy(5, clients_required=4)
    accept(p, 0)
    p.received("c1")
    p.failed("c2")
    assert isinstance(p.decide(2.0), Wait)
    p.rejected("c1")
    assert p.decide(2.0) == Close(Why.HOPELESS)
    assert p.verdict() == Failed(
        "1 of 4 required updates, and 4 can no longer be reached "
        "(asked 5: 1 accepted, 1 rejected, 1 failed, 2 did not answer)"
    )


def test_a_received_update_counts_as_possible():
    p = policy(2, clients_required=2)
    p.received("c0")
    p.received("c1")
    assert isinstance(p.decide(2.0), Wait)


def test_a_round_of_nobody_ends():
    p = RoundPolicy([], config(), DEADLINE)
    assert p.decide(0.0) == Close(Why.ANSWERED)
    assert p.verdict() == Failed(
        "0 of 1 required update after every asked client had answered (asked nobody)"
    )


def test_reason_at_the_deadline():
    p = policy(5, clients_required=3)
    accept(p, 0, 1)
    p.rejected("c2")
    p.decide(DEADLINE)
    assert p.verdict() == Failed(
        "2 of 3 required updates at the deadline (asked 5: 2 accepted, 1 rejected, 2 did not answer)"
    )


def test_reason_after_all_answers_of_a_validation():
    p = policy(2, task="validation", clients_required=2)
    p.accepted("c0", 1.0)
    p.failed("c1")
    assert p.decide(1.0) == Close(Why.ANSWERED)
    assert p.verdict() == Failed(
        "1 of 2 required answers after every asked client had answered (asked 2: 1 accepted, 1 failed)"
    )


def test_an_update_of_a_client_that_was_given_up_counts():
    p = policy(2, clients_required=2)
    p.failed("c1")
    p.received("c1")
    assert p.state("c1") is ClientState.RECEIVED
    accept(p, 0)
    assert isinstance(p.decide(1.0), Wait)


def test_a_client_that_is_asked_again_is_waited_for_again():
    p = policy(2, clients_required=2)
    p.failed("c0")
    p.asked_again("c0")
    assert p.waiting_for() == ["c0", "c1"]
    p.asked_again("c1")
    assert p.decide(2.0) == Wait(DEADLINE)
    accept(p, 0, 1)
    p.asked_again("c0")
    assert p.decide(3.0) == Close(Why.GOAL)


def test_steps_told_twice_or_too_late_change_nothing():
    p = policy(4, clients_required=2)
    accept(p, 0)
    accept(p, 0)
    p.failed("c0")
    p.rejected("c0")
    p.received("c0")
    assert p.state("c0") is ClientState.ACCEPTED
    p.rejected("c1")
    p.received("c1")
    p.failed("c1")
    assert p.state("c1") is ClientState.REJECTED
    p.received("c2")
    p.failed("c2")
    assert p.state("c2") is ClientState.RECEIVED
    p.received("stranger")
    p.accepted("stranger", 1.0)
    assert p.state("stranger") is None
    assert isinstance(p.decide(1.0), Wait)


def test_away_clients_are_lost_after_their_grace():
    p = policy(3, client_grace=10)
    p.away("c0", since=5.0)
    p.away("c1", since=3.0)
    assert p.decide(6.0) == Wait(13.0)
    assert p.lost(12.9) == []
    assert p.lost(13.0) == ["c1"]
    p.failed("c1")
    assert p.decide(13.0) == Wait(15.0)
    p.back("c0")
    assert p.decide(13.0) == Wait(DEADLINE)
    assert p.lost(99.0) == []


def test_a_lost_client_that_could_not_be_recorded_is_named_again_later():
    p = policy(3, client_grace=10)
    p.away("c0", since=0.0)
    assert p.lost(10.0) == ["c0"]
    p.away("c0", since=0.0)  # the roster still says so
    assert p.lost(10.0) == []
    assert p.decide(10.0) == Wait(20.0)
    assert p.lost(20.0) == ["c0"]


def test_without_grace_a_lost_client_is_not_named_in_a_spin():
    p = policy(3, client_grace=0)
    p.away("c0", since=7.0)
    assert p.lost(7.0) == ["c0"]
    assert p.lost(7.0) == []
    assert p.decide(7.0) == Wait(8.0)


def test_a_client_that_has_answered_may_go_away():
    p = policy(3)
    accept(p, 0)
    p.away("c0", since=1.0)
    p.away("c1", since=1.0)
    p.received("c1")
    assert p.lost(50.0) == []


def test_many_absences_cost_little():
    p = policy(5000, clients_requested=5000)
    for i in range(5000):
        p.away(f"c{i}", since=float(i % 50))
        p.decide(50.0)
    assert len(p.lost(60.0)) == 5000


def journal(clients: dict[str, tuple[ClientState, int]], *, closed_why: str = "") -> Job:
    return Job(
        job_id="j",
        session_id="",
        kind=Kind.TRAINING,
        state=State.RUNNING,
        reason="",
        round_id="1",
        model_id="",
        parent_model_id="m",
        config={},
        phase="collecting",
        version=1,
        created_ms=0,
        deadline_ms=int(DEADLINE * 1000),
        closed=bool(closed_why),
        closed_why=closed_why,
        clients={
            name: ClientRecord(name, state, f"t-{name}", at_ms=at_ms)
            for name, (state, at_ms) in clients.items()
        },
    )


def test_resume_knows_when_the_grace_began():
    job = journal(
        {
            "a": (ClientState.ACCEPTED, 20_000),
            "b": (ClientState.ACCEPTED, 30_000),
            "c": (ClientState.RECEIVED, 31_000),
            "d": (ClientState.ASKED, 1_000),
        }
    )
    p = RoundPolicy.resume(job, config(clients_required=2, grace=10), now=35.0)
    assert p.decide(35.0) == Wait(40.0)
    assert p.waiting_for() == ["d"]


def test_resume_without_times_gives_the_whole_grace_again():
    job = journal({"a": (ClientState.ACCEPTED, 0), "b": (ClientState.ASKED, 0)})
    p = RoundPolicy.resume(job, config(grace=10), now=35.0)
    assert p.decide(35.0) == Wait(45.0)


@pytest.mark.parametrize(("said", "why"), [("hopeless", Why.HOPELESS), ("some other word", Why.DEADLINE)])
def test_resume_of_a_closed_job_stays_closed(said: str, why: Why):
    job = journal({"a": (ClientState.RECEIVED, 0)}, closed_why=said)
    assert RoundPolicy.resume(job, config(), now=1.0).decide(1.0) == Close(why)


def test_too_few_clients():
    assert too_few_clients(1, config(clients_required=3)) == Failed("1 of 3 required clients active")
    waiting = config(clients_required=3, wait_for_clients=60)
    assert too_few_clients(0, waiting) == Failed("0 of 3 required clients active after 60 s")
