"""Sessions, the registry of models, and the settings."""

from __future__ import annotations

from dataclasses import replace

import pytest
from combiner.adapters.state import RedisState
from combiner.domain.types import Model, RoundResult, Session, State
from combiner.ports import Conflict, Ended, Lease, LeaseLost, QueueFull

from tests.contract.state_kit import Bench, a_model, closed, following, job_of, listed, new_job, opened, twice

RESULT = RoundResult("1", "j1", State.SUCCEEDED, model_id="m1", metrics={"loss": 0.5}, accepted=3, ended_ms=9)


def new_session(session_id: str = "s1") -> Session:
    return Session(session_id, State.QUEUED, "", "m0", "m0", {"rounds": "3"})


async def running(state: RedisState, session_id: str = "s1") -> tuple[Lease, Session]:
    await state.sessions.start(new_session(session_id))
    lease = await state.sessions.claim("r1")
    assert lease is not None
    session = await state.sessions.get(session_id)
    assert session is not None
    return lease, session


async def test_a_session_is_queued_as_it_was_given(state: RedisState) -> None:
    session = await state.sessions.start(new_session())
    assert replace(session, created_ms=0, version=0) == new_session()
    assert session.created_ms > 0
    assert await state.sessions.get("s1") == session
    assert await state.sessions.start(replace(new_session(), seed_model_id="other")) == session
    assert await state.sessions.get("nothing") is None
    assert await state.sessions.cancel("nothing", "") is None


async def test_sessions_run_one_after_the_other(state: RedisState) -> None:
    await state.sessions.start(new_session("s1"))
    await state.sessions.start(new_session("s2"))
    first = await state.sessions.claim("r1")
    assert first is not None
    assert first.work == "session:s1"
    assert await state.sessions.claim("r2") is None
    session = await state.sessions.get("s1")
    assert session is not None
    assert session.state is State.RUNNING
    assert session.started_ms > 0
    await state.sessions.advance(first, replace(session, state=State.SUCCEEDED), None)
    second = await state.sessions.claim("r2")
    assert second is not None
    assert second.id == "s2"


async def test_a_full_queue_refuses_new_sessions(bench: Bench) -> None:
    state = bench.state(max_queued=1)
    await state.sessions.start(new_session("s1"))
    with pytest.raises(QueueFull):
        await state.sessions.start(new_session("s2"))
    assert (await state.sessions.start(new_session("s1"))).session_id == "s1"


async def test_advancing_records_the_session_and_submits_its_job(state: RedisState) -> None:
    lease, session = await running(state)
    changed = replace(
        session, model_id="m1", round=2, failed_in_a_row=1, current_job_id="j2", results=(RESULT,)
    )
    async with following(state) as log:
        after = await state.sessions.advance(lease, changed, new_job("j2", session_id="s1", parent="m1"))
        await log.until("both events", lambda: log.words() == ["resync", "queued", "session"])
    assert after == replace(changed, version=session.version + 1)
    assert await state.sessions.get("s1") == after
    job = await job_of(state, "j2")
    assert (job.state, job.session_id) == (State.QUEUED, "s1")
    event = log.events[2]
    assert (event.session_id, event.job_id, event.state, event.version) == (
        "s1",
        "j2",
        "RUNNING",
        after.version,
    )


async def test_of_two_changes_of_the_same_version_one_wins(state: RedisState) -> None:
    lease, session = await running(state)
    await state.sessions.advance(lease, replace(session, round=1), None)
    with pytest.raises(Conflict):
        await state.sessions.advance(lease, replace(session, round=2), new_job("j9"))
    assert await state.jobs.get("j9") is None
    after = await state.sessions.get("s1")
    assert after is not None
    assert after.round == 1


async def test_a_step_that_follows_from_a_job_needs_its_end_as_it_was(state: RedisState) -> None:
    """A failover of Redis may take back an end that the owner of the session has seen."""
    lease, session = await running(state)
    session = await state.sessions.advance(
        lease, replace(session, current_job_id="j1"), new_job("j1", session_id="s1")
    )
    job = await job_of(state)
    for seen in (replace(job, state=State.SUCCEEDED, model_id="lost"), replace(job, model_id="lost")):
        with pytest.raises(Conflict, match="failed over"):
            await state.sessions.advance(lease, replace(session, model_id="lost"), new_job("j2"), seen)
    assert await state.jobs.get("j2") is None
    assert await state.sessions.get("s1") == session
    await state.sessions.advance(lease, replace(session, round=2), new_job("j2"), job)
    assert await state.jobs.get("j2") is not None


async def test_advancing_needs_the_lease_of_that_session(state: RedisState) -> None:
    lease, session = await running(state)
    with pytest.raises(LeaseLost):
        await state.sessions.advance(Lease(lease.work, lease.token - 1), session, None)
    with pytest.raises(ValueError, match="session:s9"):
        await state.sessions.advance(Lease("session:s9", lease.token), session, None)
    await state.leases.release(lease)
    with pytest.raises(LeaseLost):
        await state.sessions.advance(lease, session, None)


async def test_an_ended_session_is_never_advanced(state: RedisState) -> None:
    lease, session = await running(state)
    ended = await state.sessions.advance(
        lease, replace(session, state=State.FAILED, reason="3 rounds failed"), None
    )
    assert (ended.state, ended.reason) == (State.FAILED, "3 rounds failed")
    assert ended.ended_ms >= ended.started_ms
    with pytest.raises(Ended):
        await state.sessions.advance(lease, ended, None)
    _, views = await state.leases.renew("r1", [])
    assert [view.work for view in views] == ["replica:r1"]
    assert await state.sessions.cancel("s1", "too late") == ended


async def test_cancelling_a_session_ends_its_job_too(state: RedisState) -> None:
    lease, session = await running(state)
    await state.sessions.advance(lease, replace(session, current_job_id="j1"), new_job("j1", session_id="s1"))
    job_lease = await state.jobs.claim("r1")
    assert job_lease is not None
    async with following(state) as log:
        ended = await twice(lambda: state.sessions.cancel("s1", "by hand"))
        await log.until("both ends", lambda: log.words() == ["resync", "cancelled", "session"])
    assert ended is not None
    assert (ended.state, ended.reason, ended.version) == (State.CANCELLED, "by hand", log.events[2].version)
    job = await job_of(state)
    assert (job.state, job.reason) == (State.CANCELLED, "by hand")
    with pytest.raises(Ended):
        await state.jobs.close(job_lease, "")
    with pytest.raises(Ended):
        await state.sessions.advance(lease, session, None)


async def test_cancelling_a_queued_session(state: RedisState) -> None:
    await running(state, "s1")
    await state.sessions.start(new_session("s2"))
    cancelled = await state.sessions.cancel("s2", "by hand")
    assert cancelled is not None
    assert cancelled.state is State.CANCELLED
    await state.sessions.cancel("s1", "")
    assert await state.sessions.claim("r1") is None


async def test_the_newest_sessions_are_listed_oldest_first(state: RedisState) -> None:
    for number in range(4):
        await state.sessions.start(new_session(f"s{number}"))
    assert [session.session_id for session in await listed(state.sessions.list(limit=3))] == [
        "s1",
        "s2",
        "s3",
    ]


async def test_ended_sessions_go_when_they_are_many_and_old(bench: Bench) -> None:
    state = bench.state(keep_sessions=1)
    for number in range(3):
        await running(state, f"s{number}")
        await state.sessions.cancel(f"s{number}", "")
    assert len(await listed(state.sessions.list())) == 3
    bench.raw.zadd(bench.key("ended:session"), {f"s{number}": number for number in range(3)})
    await running(state, "s3")
    await state.sessions.cancel("s3", "")
    assert [session.session_id for session in await listed(state.sessions.list())] == ["s2", "s3"]
    assert not bench.raw.exists(bench.key("session:s0"), bench.key("session-jobs:s0"))


# --- models


async def test_the_first_record_of_a_model_stays(state: RedisState) -> None:
    given = Model("m1", "m0", "s1", "2", "j1", 10, "ab", 0, 3, 30, "first", {"loss": 1.0})
    model = await state.models.register(given)
    assert model == replace(given, created_ms=model.created_ms)
    assert model.created_ms > 0
    assert await state.models.register(a_model("m1")) == model
    assert await state.models.get("m1") == model
    assert await state.models.get("m2") is None
    kept = await state.models.register(replace(given, model_id="m3", created_ms=5))
    assert kept.created_ms == 5


async def test_the_newest_model_is_the_last_one_a_job_made(state: RedisState) -> None:
    assert await state.models.newest() is None
    for model_id in ("m1", "m2"):
        await state.models.register(a_model(model_id))
    newest = await state.models.newest()
    assert newest is not None
    assert newest.model_id == "m2"
    lease = await closed(state, await opened(state, []))
    await state.jobs.commit(lease, a_model("m3"), {})
    await state.models.register(a_model("m4"))
    newest = await state.models.newest()
    assert newest is not None
    assert newest.model_id == "m3"


async def test_models_are_listed_oldest_first(state: RedisState) -> None:
    for number in range(60):
        await state.models.register(a_model(f"m{number}", session_id="s1" if number % 2 else ""))
    assert [model.model_id for model in await listed(state.models.list(limit=55))] == [
        f"m{n}" for n in range(5, 60)
    ]
    of_session = await listed(state.models.list(session_id="s1", limit=2))
    assert [model.model_id for model in of_session] == ["m57", "m59"]


# --- settings


async def test_settings_are_shared(bench: Bench, state: RedisState) -> None:
    assert await state.settings.get() == {}
    async with following(state) as log:
        await state.settings.put({})
        await state.settings.put({"max_clients": "10", "other": ""})
        await log.until("the settings event", lambda: "settings" in log.words())
    assert await bench.state().settings.get() == {"max_clients": "10", "other": ""}
    await state.settings.put({"max_clients": "20"})
    assert await state.settings.get() == {"max_clients": "20", "other": ""}
