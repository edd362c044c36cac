"""Answers of clients: every verdict, each of them twice."""

from __future__ import annotations

import pytest
from combiner.adapters.state import RedisState
from combiner.domain.types import ClientState, Kind, Outcome, State
from combiner.ports import Received, Verdict, outcomes

from tests.contract.state_kit import (
    Bench,
    answers_of,
    client_state,
    closed,
    following,
    job_of,
    new_job,
    opened,
    receive,
    twice,
)


def rejected(reason: str, job_id: str = "j1") -> Received:
    return Received(Verdict.REJECTED, job_id, reason)


def received(job_id: str = "j1") -> Received:
    return Received(Verdict.RECEIVED, job_id)


def repeated(reason: str = "") -> Received:
    return Received(Verdict.REPEATED, "j1", reason)


async def refuse(state: RedisState, client: str, reason: str = "not_uploaded", **ids: str) -> Received:
    ids = {"task_id": f"t-j1-{client}", "job_id": "j1"} | ids
    return await state.jobs.refuse(client=client, reason=reason, detail="said so", **ids)


async def answer(state: RedisState, client: str, data: str, **ids: str) -> Received:
    ids = {"task_id": f"t-j1-{client}", "job_id": "j1", "model_id": ""} | ids
    return await state.jobs.answer(client=client, data=data, **ids)


async def fail(state: RedisState, client: str, reason: str = "client_failed", **ids: str) -> bool:
    ids = {"task_id": f"t-j1-{client}", "job_id": "j1"} | ids
    return await state.jobs.fail_client(client=client, reason=reason, detail="", **ids)


# --- updates


async def test_an_update_is_received_once(state: RedisState) -> None:
    await opened(state, ["c1"])
    assert await receive(state, "c1", "u1") == received()
    job = await job_of(state)
    record = job.clients["c1"]
    assert (record.state, record.update_id, record.num_examples) == (ClientState.RECEIVED, "u1", 7)
    assert await receive(state, "c1", "u1") == repeated()
    assert await job_of(state) == job


async def test_a_retry_is_known_as_such_after_the_end(state: RedisState) -> None:
    lease = await opened(state, ["c1", "c2"])
    await receive(state, "c1", "u1")
    await state.jobs.reject(lease, "c1", "shape", "")
    await closed(state, lease)
    assert await receive(state, "c1", "u1") == repeated("shape")
    await state.jobs.end(lease, State.FAILED, "")
    assert await receive(state, "c1", "u1", task_id="t-j1-c1") == repeated("shape")
    assert (await job_of(state)).others == ()


@pytest.mark.parametrize(("task_id", "job_id"), [("t-j1-c1", ""), ("", "j1"), ("t-j1-c1", "another")])
async def test_a_task_is_found_by_either_id(state: RedisState, task_id: str, job_id: str) -> None:
    lease = await opened(state, ["c1"])
    assert await receive(state, "c1", "u1", job_id, task_id=task_id) == received()
    await closed(state, lease)
    # and so it is when it has left the queue
    assert await receive(state, "c1", "u1", job_id, task_id=task_id) == repeated()
    assert await receive(state, "c1", "u2", job_id, task_id=task_id) == rejected("late")


@pytest.mark.parametrize(
    ("client", "task_id", "job_id", "in_job"),
    [
        ("c9", "", "j1", "j1"),  # was not asked
        ("c2", "t-j1-c1", "j1", "j1"),  # the task of another
        ("c1", "t-unknown", "j1", "j1"),
        ("c1", "t-unknown", "", ""),
        ("c1", "", "", ""),
        ("c1", "", "j-unknown", ""),
    ],
)
async def test_who_was_not_asked(
    state: RedisState, client: str, task_id: str, job_id: str, in_job: str
) -> None:
    await opened(state, ["c1", "c2"])
    verdict = await twice(lambda: receive(state, client, "u1", job_id, task_id=task_id))
    assert verdict == rejected("not_asked", in_job)
    job = await job_of(state)
    assert job.others == ((Outcome(client, "not_asked"),) if in_job else ())
    assert {record.state for record in job.clients.values()} == {ClientState.ASKED}


async def test_an_update_for_a_validation_was_not_asked_for(state: RedisState) -> None:
    await opened(state, ["c1"], kind=Kind.VALIDATION)
    assert await receive(state, "c1", "u1") == rejected("not_asked")
    assert await client_state(state, "c1") is ClientState.ASKED


async def test_an_answer_for_a_training_was_not_asked_for(state: RedisState) -> None:
    await opened(state, ["c1"])
    assert await answer(state, "c1", "{}") == rejected("not_asked")
    assert await client_state(state, "c1") is ClientState.ASKED


@pytest.mark.parametrize("end", ["closed", "cancelled"])
async def test_too_late(state: RedisState, end: str) -> None:
    lease = await opened(state, ["c1", "c2"])
    if end == "closed":
        await closed(state, lease)
    else:
        await state.jobs.cancel("j1", "")
    for update_id in ("u1", "u2"):
        assert await twice(lambda u=update_id: receive(state, "c1", u)) == rejected("late")
    assert await twice(lambda: refuse(state, "c2")) == rejected("late")
    job = await job_of(state)
    assert job.others == (Outcome("c1", "late"), Outcome("c1", "late"), Outcome("c2", "late"))
    assert job.clients["c1"].state is ClientState.ASKED


async def test_a_job_and_a_client_count_once(state: RedisState) -> None:
    await opened(state, ["c1"])
    await receive(state, "c1", "u1")
    assert await twice(lambda: receive(state, "c1", "u2")) == rejected("duplicate")
    assert await twice(lambda: refuse(state, "c1")) == rejected("duplicate")
    job = await job_of(state)
    assert job.clients["c1"].update_id == "u1"
    assert job.others == (Outcome("c1", "duplicate"), Outcome("c1", "duplicate"))


async def test_an_object_counts_once(state: RedisState) -> None:
    await opened(state, ["c1", "c2"])
    await receive(state, "c1", "u1")
    assert await receive(state, "c2", "u1") == rejected("duplicate")
    assert await receive(state, "c2", "u1") == repeated("duplicate")
    record = (await job_of(state)).clients["c2"]
    assert (record.state, record.reason) == (ClientState.REJECTED, "duplicate")


async def test_an_object_counts_once_in_all_jobs(bench: Bench) -> None:
    state = bench.state(max_running_jobs=2)
    await opened(state, ["c1"], "j1")
    await receive(state, "c1", "u1", "j1")
    await opened(state, ["c1"], "j2")
    assert await receive(state, "c1", "u1", "j2") == rejected("duplicate", "j2")
    assert await client_state(state, "c1", "j2") is ClientState.REJECTED


async def test_an_empty_upload_is_a_failure_of_the_client(state: RedisState) -> None:
    await opened(state, ["c1"])
    assert await receive(state, "c1", "u1", empty=True) == received()
    assert await receive(state, "c1", "u1", empty=True) == repeated("empty_upload")
    record = (await job_of(state)).clients["c1"]
    assert (record.state, record.reason) == (ClientState.FAILED, "empty_upload")
    assert await receive(state, "c1", "u2") == rejected("duplicate")


async def test_a_lost_client_that_answers_is_taken_back(state: RedisState) -> None:
    lease = await opened(state, ["c1", "c2", "c3"])
    for client in ("c1", "c2", "c3"):
        await fail(state, client, "client_lost")
    assert await receive(state, "c1", "u1", "", task_id="t-j1-c1") == received()
    assert await refuse(state, "c2") == rejected("not_uploaded")
    async with following(state) as log:
        await state.jobs.accept(lease, "c1")
        await log.until("the acceptance", lambda: "accepted" in log.words())
        event = log.events[-1]
    assert (event.asked, event.accepted, event.rejected, event.failed) == (3, 1, 1, 1)
    await closed(state, lease)
    assert await receive(state, "c3", "u3") == rejected("late")


async def test_a_client_that_said_it_failed_has_answered(state: RedisState) -> None:
    await opened(state, ["c1"])
    assert await fail(state, "c1")
    assert await receive(state, "c1", "u1") == rejected("duplicate")


async def test_a_bad_answer_is_refused_once(state: RedisState) -> None:
    await opened(state, ["c1"])
    assert await refuse(state, "c1", "num_examples") == rejected("num_examples")
    assert await refuse(state, "c1", "num_examples") == repeated("num_examples")
    assert await refuse(state, "c1", "not_uploaded") == rejected("duplicate")
    record = (await job_of(state)).clients["c1"]
    assert (record.state, record.reason, record.detail) == (ClientState.REJECTED, "num_examples", "said so")


async def test_an_update_needs_an_id(state: RedisState) -> None:
    await opened(state, ["c1"])
    with pytest.raises(ValueError, match="without an id"):
        await receive(state, "c1", "")


async def test_other_outcomes_are_bounded(bench: Bench) -> None:
    state = bench.state(max_others=3)
    await opened(state, ["c1"])
    for number in range(5):
        await receive(state, f"stranger-{number}", "u1", task_id="")
    job = await job_of(state)
    assert [other.client for other in job.others] == ["stranger-0", "stranger-1", "stranger-2"]
    assert outcomes(job) == (list(job.others), [])


# --- answers without an update


async def test_an_answer_is_recorded_once(state: RedisState) -> None:
    await opened(state, ["c1"], kind=Kind.VALIDATION)
    assert await answer(state, "c1", '{"loss": 1}') == received()
    assert await answer(state, "c1", '{"loss": 1}') == repeated()
    assert await twice(lambda: answer(state, "c1", '{"loss": 2}')) == rejected("duplicate")
    job = await job_of(state)
    assert await answers_of(state, job) == {"c1": '{"loss": 1}'}
    assert job.clients["c1"].state is ClientState.ACCEPTED
    assert job.others == (Outcome("c1", "duplicate"),)


async def test_an_answer_can_be_found_by_its_model(bench: Bench) -> None:
    state = bench.state(max_running_jobs=2)
    await opened(state, ["c1"], "j0")  # a training on the same model: not meant
    await opened(state, ["c1"], "j1", kind=Kind.INFERENCE)
    assert await answer(state, "c1", "[]", task_id="", job_id="", model_id="other") == rejected(
        "not_asked", ""
    )
    assert await answer(state, "c1", "[]", task_id="", job_id="", model_id="seed") == received()
    assert await answers_of(state) == {"c1": "[]"}


async def test_an_answer_of_64_kib_is_kept_and_a_larger_one_rejected(state: RedisState) -> None:
    await opened(state, ["c1", "c2"], kind=Kind.VALIDATION)
    assert await answer(state, "c1", "ä" * 32_768) == received()
    assert await answer(state, "c2", "ä" * 32_768 + "x") == rejected("too_large")
    job = await job_of(state)
    assert job.answered == ["c1"]
    assert await answers_of(state, job) == {"c1": "ä" * 32_768}
    assert (job.clients["c2"].state, job.clients["c2"].reason) == (ClientState.REJECTED, "too_large")


async def test_a_late_answer(state: RedisState) -> None:
    lease = await opened(state, ["c1"], kind=Kind.VALIDATION)
    await closed(state, lease)
    assert await twice(lambda: answer(state, "c1", "{}")) == rejected("late")
    assert await answers_of(state) == {}


# --- clients that will not answer


async def test_only_an_asked_client_fails(state: RedisState) -> None:
    lease = await opened(state, ["c1", "c2", "c3"])
    assert await fail(state, "c1") is True
    assert await fail(state, "c1") is False
    await receive(state, "c2", "u2")
    assert await fail(state, "c2") is False
    assert await fail(state, "c2", task_id="t-j1-c3") is False
    assert await fail(state, "nobody") is False
    await closed(state, lease)
    assert await fail(state, "c3") is False
    job = await job_of(state)
    assert {name: record.state for name, record in job.clients.items()} == {
        "c1": ClientState.FAILED,
        "c2": ClientState.RECEIVED,
        "c3": ClientState.ASKED,
    }


# --- answers that were confirmed but not recorded


async def test_unrecorded_answers_are_listed_after_the_end_too(state: RedisState) -> None:
    await opened(state, ["c1", "c2", "c3"])
    await receive(state, "c2", "u2")
    await state.jobs.cancel("j1", "")
    for client in ("c3", "c1", "c2", "c9"):
        add = {"client": client, "task_id": f"t-j1-{client}", "job_id": "j1"}
        await twice(lambda a=add: state.jobs.add_unrecorded(**a))
    assert (await job_of(state)).unrecorded == ("c1", "c3")  # c2 was recorded, c9 not asked


async def test_an_answer_recorded_after_all_is_not_unrecorded(state: RedisState) -> None:
    await opened(state, ["c1"])
    await state.jobs.add_unrecorded(client="c1", task_id="t-j1-c1", job_id="")
    assert (await job_of(state)).unrecorded == ("c1",)
    await receive(state, "c1", "u1")
    assert (await job_of(state)).unrecorded == ()


async def test_unrecorded_of_an_unknown_job_is_nothing(state: RedisState) -> None:
    await state.jobs.submit(new_job("j1"))
    await state.jobs.add_unrecorded(client="c1", task_id="t9", job_id="")
    assert (await job_of(state)).unrecorded == ()
