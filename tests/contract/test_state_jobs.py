"""The journal of jobs: from the queue to the end."""

from __future__ import annotations

import asyncio

import pytest
from combiner.adapters.state import RedisState
from combiner.domain.types import ClientState, Kind, State
from combiner.ports import Ask, Conflict, Ended, Lease, LeaseLost, QueueFull

from tests.contract.state_kit import (
    TASK_DATA,
    Bench,
    a_model,
    claimed,
    closed,
    figures,
    following,
    job_of,
    listed,
    new_job,
    opened,
    receive,
    twice,
)

MANY = 5_000


async def test_a_submitted_job_is_queued_as_it_was_given(state: RedisState) -> None:
    job = await state.jobs.submit(new_job("j1", session_id="s1", parent="m0"))
    assert (job.state, job.phase, job.kind, job.session_id) == (State.QUEUED, "", Kind.TRAINING, "s1")
    assert (job.round_id, job.parent_model_id, job.config) == ("1", "m0", {"round_timeout": "60"})
    assert job.created_ms > 0
    assert job.version == 1
    assert await state.jobs.get("j1") == job


async def test_an_id_is_submitted_once(state: RedisState) -> None:
    first = await state.jobs.submit(new_job("j1"))
    assert await state.jobs.submit(new_job("j1", parent="other")) == first
    assert await state.jobs.counts() == {State.QUEUED: 1, State.RUNNING: 0}


async def test_an_unknown_job_is_none(state: RedisState) -> None:
    assert await state.jobs.get("nothing") is None
    assert await state.jobs.cancel("nothing", "why") is None


async def test_a_full_queue_refuses_new_jobs_but_knows_the_old(bench: Bench) -> None:
    state = bench.state(max_queued=2)
    for job_id in ("j1", "j2"):
        await state.jobs.submit(new_job(job_id))
    with pytest.raises(QueueFull, match="2 jobs are queued already"):
        await state.jobs.submit(new_job("j3"))
    assert (await state.jobs.submit(new_job("j2"))).job_id == "j2"


async def test_jobs_run_first_in_first_out_one_at_a_time(state: RedisState) -> None:
    for number in range(3):
        await state.jobs.submit(new_job(f"j{number}"))
    for number in range(3):
        lease = await state.jobs.claim("r1")
        assert lease is not None
        assert lease.work == f"job:j{number}"
        assert await state.jobs.claim("r1") is None
        await state.jobs.end(lease, State.FAILED, "for the test")
    assert await state.jobs.claim("r1") is None


async def test_more_jobs_run_at_once_when_that_is_allowed(bench: Bench) -> None:
    state = bench.state(max_running_jobs=2)
    for number in range(3):
        await state.jobs.submit(new_job(f"j{number}"))
    leases = [await state.jobs.claim("r1") for _ in range(3)]
    assert [lease and lease.id for lease in leases] == ["j0", "j1", None]
    assert await state.jobs.unended() == ["j0", "j1", "j2"] or await state.jobs.unended() == [
        "j1",
        "j0",
        "j2",
    ]


async def test_replicas_that_race_for_jobs_get_different_ones(bench: Bench) -> None:
    one, two = bench.state(max_running_jobs=50), bench.state(max_running_jobs=50)
    for number in range(40):
        await one.jobs.submit(new_job(f"j{number}"))
    leases = await asyncio.gather(
        *(s.jobs.claim(r) for _ in range(25) for s, r in ((one, "r1"), (two, "r2")))
    )
    got = [lease for lease in leases if lease is not None]
    assert len({lease.id for lease in got}) == len(got) == 40
    assert len({lease.token for lease in got}) == 40


async def test_a_claimed_job_runs_and_waits_for_clients(state: RedisState) -> None:
    await claimed(state)
    job = await job_of(state)
    assert (job.state, job.phase) == (State.RUNNING, "waiting")
    assert job.started_ms >= job.created_ms


async def test_open_records_who_is_asked_until_when(state: RedisState) -> None:
    lease = await claimed(state)
    before = await state.log.now_ms()
    job = await state.jobs.open(lease, [Ask("c2", "t2"), Ask("c1", "t1")], 5_000, TASK_DATA)
    assert job.phase == "collecting"
    assert before + 5_000 <= job.deadline_ms <= await state.log.now_ms() + 5_000
    assert {name: (r.state, r.task_id) for name, r in job.clients.items()} == {
        "c1": (ClientState.ASKED, "t1"),
        "c2": (ClientState.ASKED, "t2"),
    }
    assert all(before <= r.at_ms <= job.deadline_ms for r in job.clients.values())


async def test_only_the_first_open_counts(state: RedisState) -> None:
    lease = await claimed(state)
    first = await state.jobs.open(lease, [Ask("c1", "t1")], 5_000, TASK_DATA)
    assert await state.jobs.open(lease, [Ask("c2", "t2")], 9_000, "{}") == first


async def test_open_of_thousands_is_one_step(bench: Bench, state: RedisState) -> None:
    lease = await claimed(state)
    bench.raw.config_resetstat()
    job = await state.jobs.open(lease, [Ask(f"client-{n}", f"t{n}") for n in range(MANY)], 60_000, TASK_DATA)
    assert len(job.clients) == MANY
    scripts = bench.raw.info("commandstats")["cmdstat_evalsha"]
    assert scripts["calls"] - scripts["failed_calls"] == 1


async def test_close_ends_receiving(state: RedisState) -> None:
    lease = await opened(state, ["c1", "c2"])
    await receive(state, "c1", "u1")
    job = await twice(lambda: state.jobs.close(lease, "deadline"))
    assert (job.closed, job.closed_why, job.phase) == (True, "deadline", "aggregating")
    assert job.clients["c2"].state is ClientState.ASKED
    assert (await state.jobs.close(lease, "another reason")).closed_why == "deadline"


async def test_a_received_update_is_accepted_or_rejected(state: RedisState) -> None:
    lease = await opened(state, ["c1", "c2"])
    await receive(state, "c1", "u1")
    await receive(state, "c2", "u2")
    await twice(lambda: state.jobs.accept(lease, "c1"))
    await twice(lambda: state.jobs.reject(lease, "c2", "non_finite", "x" * 10_000))
    job = await job_of(state)
    assert job.clients["c1"].state is ClientState.ACCEPTED
    assert (job.clients["c2"].state, job.clients["c2"].reason) == (ClientState.REJECTED, "non_finite")
    assert len(job.clients["c2"].detail) == 500


async def test_an_accepted_update_can_be_taken_back(state: RedisState) -> None:
    lease = await opened(state, ["c1"])
    await receive(state, "c1", "u1")
    await state.jobs.accept(lease, "c1")
    async with following(state) as log:
        await state.jobs.reject(lease, "c1", "not_uploaded", "gone from the store")
        await log.until("the rejection", lambda: len(log.events) == 2)
    assert (log.events[1].what, log.events[1].accepted, log.events[1].rejected) == ("rejected", 0, 1)


async def test_what_was_not_received_is_neither_accepted_nor_rejected(state: RedisState) -> None:
    lease = await opened(state, ["c1"])
    for client in ("c1", "somebody else"):
        with pytest.raises(Conflict):
            await state.jobs.accept(lease, client)
        with pytest.raises(Conflict):
            await state.jobs.reject(lease, client, "shape", "")
    await receive(state, "c1", "u1")
    await state.jobs.reject(lease, "c1", "shape", "")
    with pytest.raises(Conflict):
        await state.jobs.accept(lease, "c1")


async def test_commit_makes_the_aggregate_the_models_job(state: RedisState) -> None:
    lease = await opened(state, ["c1"])
    await receive(state, "c1", "u1")
    await state.jobs.accept(lease, "c1")
    await closed(state, lease)
    await twice(lambda: state.jobs.commit(lease, a_model("m1"), {"folding": 0.25}))
    job = await job_of(state)
    assert (job.state, job.model_id, job.reason, job.phase) == (State.SUCCEEDED, "m1", "", "")
    assert job.timings == {"folding": 0.25}
    assert job.ended_ms >= job.started_ms
    newest = await state.models.newest()
    assert newest is not None
    assert (newest.model_id, newest.sha256) == ("m1", "ab")
    assert await state.jobs.counts() == {State.QUEUED: 0, State.RUNNING: 0}


async def test_commit_leaves_no_received_update_out(state: RedisState) -> None:
    lease = await opened(state, ["c1", "c2"])
    await receive(state, "c1", "u1")
    with pytest.raises(Conflict):
        await state.jobs.commit(lease, a_model("m1"), {})  # not closed
    await closed(state, lease)
    with pytest.raises(Conflict):
        await state.jobs.commit(lease, a_model("m1"), {})  # c1 is undecided
    await state.jobs.accept(lease, "c1")
    await state.jobs.commit(lease, a_model("m1"), {})


async def test_a_commit_after_the_end_changes_nothing(state: RedisState) -> None:
    lease = await closed(state, await opened(state, []))
    await state.jobs.cancel("j1", "by hand")
    with pytest.raises(Ended):
        await state.jobs.commit(lease, a_model("m1"), {})
    assert await state.models.get("m1") is None


async def test_end_gives_the_reason(state: RedisState) -> None:
    lease = await opened(state, ["c1"])
    await receive(state, "c1", "u1")
    await twice(lambda: state.jobs.end(lease, State.FAILED, "too few answers", timings={"collecting": 1.5}))
    job = await job_of(state)
    assert (job.state, job.reason, job.timings) == (State.FAILED, "too few answers", {"collecting": 1.5})
    assert job.closed
    with pytest.raises(Ended):
        await state.jobs.end(lease, State.SUCCEEDED, "")
    with pytest.raises(ValueError, match="RUNNING"):
        await state.jobs.end(lease, State.RUNNING, "")


async def test_metrics_are_recorded_at_the_parent(state: RedisState) -> None:
    await state.models.register(a_model("m0"))
    await state.jobs.submit(new_job("j1", kind=Kind.VALIDATION, parent="m0"))
    lease = await state.jobs.claim("r1")
    assert lease is not None
    found = figures({"c1": '{"loss": 1, "accuracy": 0.5}', "c2": '{"loss": 3}'})
    await state.jobs.end(lease, State.SUCCEEDED, "", figures=found)
    model = await state.models.get("m0")
    assert model is not None
    assert model.metrics == {"accuracy": 0.5, "loss": 2.0}
    assert model.client_metrics == {"c1": {"loss": 1.0, "accuracy": 0.5}, "c2": {"loss": 3.0}}
    assert (await job_of(state)).metrics == model.metrics


async def test_metrics_of_an_unknown_model_are_dropped(state: RedisState) -> None:
    lease = await opened(state, [], kind=Kind.VALIDATION)
    await state.jobs.end(lease, State.SUCCEEDED, "", figures=figures({"c1": '{"loss": 1}'}))
    assert await state.models.get("seed") is None


async def test_a_job_is_not_closed_by_what_its_journal_does_not_know(state: RedisState) -> None:
    """As after a failover to a replica that had not heard of the last answers."""
    lease = await opened(state, ["c1"])
    version = (await job_of(state)).version
    with pytest.raises(Conflict, match="failed over"):
        await state.jobs.close(lease, "goal", version + 1)
    assert not (await job_of(state)).closed
    assert (await state.jobs.close(lease, "goal", version)).closed
    assert (await state.jobs.close(lease, "goal", version)).closed


@pytest.mark.parametrize("running", [False, True])
async def test_cancel_ends_at_once(state: RedisState, running: bool) -> None:
    if running:
        await opened(state, ["c1"])
    else:
        await state.jobs.submit(new_job("j1"))
    job = await twice(lambda: state.jobs.cancel("j1", "by hand"))
    assert job is not None
    assert (job.state, job.reason) == (State.CANCELLED, "by hand")
    assert await state.jobs.counts() == {State.QUEUED: 0, State.RUNNING: 0}
    await state.jobs.submit(new_job("j2"))
    lease = await state.jobs.claim("r1")
    assert lease is not None
    assert lease.id == "j2"


async def test_an_ended_job_stays_as_it_is(state: RedisState) -> None:
    lease = await opened(state, [])
    await state.jobs.end(lease, State.FAILED, "first")
    job = await state.jobs.cancel("j1", "second")
    assert job is not None
    assert (job.state, job.reason) == (State.FAILED, "first")


LEASED = {
    "open": lambda s, lease: s.jobs.open(lease, [], 1, TASK_DATA),
    "accept": lambda s, lease: s.jobs.accept(lease, "c1"),
    "reject": lambda s, lease: s.jobs.reject(lease, "c1", "shape", ""),
    "close": lambda s, lease: s.jobs.close(lease, ""),
    "commit": lambda s, lease: s.jobs.commit(lease, a_model("m1"), {}),
    "end": lambda s, lease: s.jobs.end(lease, State.FAILED, ""),
    "release": lambda s, lease: s.leases.release(lease),
}


@pytest.mark.parametrize("step", LEASED)
async def test_leased_steps_need_the_lease(state: RedisState, step: str) -> None:
    lease = await opened(state, ["c1"])
    await receive(state, "c1", "u1")
    before = await job_of(state)
    with pytest.raises(LeaseLost):
        await LEASED[step](state, Lease(lease.work, lease.token - 1))
    await state.leases.release(lease)
    if step != "release":  # which may be repeated
        with pytest.raises(LeaseLost):
            await LEASED[step](state, lease)
    assert await job_of(state) == before


@pytest.mark.parametrize("step", LEASED)
async def test_leased_steps_end_with_the_job(state: RedisState, step: str) -> None:
    lease = await opened(state, ["c1"])
    await receive(state, "c1", "u1")
    before = await state.jobs.cancel("j1", "by hand")
    with pytest.raises(Ended):
        await LEASED[step](state, lease)
    assert await job_of(state) == before


async def test_the_newest_jobs_are_listed_oldest_first(state: RedisState) -> None:
    for number in range(45):
        await state.jobs.submit(new_job(f"j{number}", session_id="s1" if number % 2 else ""))
    assert [job.job_id for job in await listed(state.jobs.list(limit=30))] == [f"j{n}" for n in range(15, 45)]
    of_session = await listed(state.jobs.list(session_id="s1", limit=2))
    assert [job.job_id for job in of_session] == ["j41", "j43"]


async def test_ended_jobs_go_when_they_are_many_and_old(bench: Bench) -> None:
    state = bench.state(keep_jobs=2)
    for number in range(4):
        await opened(state, ["c1"], f"j{number}")
        await receive(state, "c1", f"u{number}", f"j{number}")
        await state.jobs.cancel(f"j{number}", "")
    assert len(await listed(state.jobs.list())) == 4  # many, but not old
    bench.raw.zadd(bench.key("ended:job"), {f"j{number}": number for number in range(4)})
    await opened(state, ["c1"], "j4")
    await state.jobs.cancel("j4", "")
    assert [job.job_id for job in await listed(state.jobs.list())] == [
        "j3",
        "j4",
    ]  # no more than are too many
    assert await state.jobs.get("j0") is None
    await opened(state, ["c1"], "j5")
    await state.jobs.cancel("j5", "")
    assert [job.job_id for job in await listed(state.jobs.list())] == ["j4", "j5"]
    left = {key.removeprefix(bench.prefix) for key in bench.raw.keys(bench.key("*"))}
    assert not left & {f"{of}:j{n}" for n in range(4) for of in ("job", "clients", "others", "unrecorded")}
    assert not left & {f"update:u{n}" for n in range(4)}


async def test_ended_jobs_go_when_their_clients_are_too_many(bench: Bench) -> None:
    state = bench.state(keep_records=30)
    for number in range(4):
        await opened(state, [f"c{n}" for n in range(10)], f"j{number}")
        await state.jobs.cancel(f"j{number}", "")
    assert [job.job_id for job in await listed(state.jobs.list())] == ["j2", "j3"]
    assert bench.raw.get(bench.key("records")) == "24"  # and two for each job itself


async def test_long_answers_weigh_more(bench: Bench) -> None:
    state = bench.state(keep_records=600)
    for number in range(4):
        job_id = f"j{number}"
        await opened(state, ["c1"], job_id, kind=Kind.VALIDATION)
        await state.jobs.answer(client="c1", task_id="", job_id=job_id, model_id="", data="x" * 65_536)
        await state.jobs.cancel(job_id, "")
        await receive(state, "c9", "u1", job_id, task_id="")
    assert [job.job_id for job in await listed(state.jobs.list())] == ["j2", "j3"]
    assert bench.raw.get(bench.key("records")) == str(2 * (2 + 1 + 256 + 2))


async def test_an_updates_object_is_remembered_for_a_limited_time(bench: Bench, state: RedisState) -> None:
    await opened(state, ["c1"])
    await receive(state, "c1", "u1")
    assert 29 * 86_400 < bench.raw.ttl(bench.key("update:u1")) <= 30 * 86_400 + 60


async def test_an_updates_object_is_remembered_longer_than_its_round_lasts(
    bench: Bench, state: RedisState
) -> None:
    lease = await claimed(state)
    month_ms = 30 * 86_400_000
    await state.jobs.open(lease, [Ask("c1", "t1")], month_ms, TASK_DATA)
    await receive(state, "c1", "u1", task_id="t1")
    assert 59 * 86_400 < bench.raw.ttl(bench.key("update:u1")) <= 60 * 86_400
