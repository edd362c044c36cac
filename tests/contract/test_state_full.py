"""A Redis at `maxmemory`: nothing is added, and everything that frees, ends or renews goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from combiner.adapters.state import RedisState
from combiner.domain.types import ClientState, Model, Session, State
from combiner.ports import Ended, StateUnavailable, Stream, View

from tests.contract.state_kit import (
    Bench,
    a_model,
    claimed,
    client_state,
    closed,
    job_of,
    new_job,
    opened,
    receive,
)


@contextmanager
def full(bench: Bench) -> Iterator[None]:
    """With a limit that is below what is used already."""
    bench.raw.config_set("maxmemory", "1mb")
    try:
        yield
    finally:
        bench.raw.config_set("maxmemory", "0")


async def test_nothing_new_is_begun(bench: Bench, state: RedisState) -> None:
    with full(bench):
        with pytest.raises(StateUnavailable, match="full"):
            await state.jobs.submit(new_job("j1"))
        with pytest.raises(StateUnavailable, match="full"):
            await state.sessions.start(Session("s1", State.QUEUED, "", "m0", "m0", {"rounds": "3"}))
        with pytest.raises(StateUnavailable, match="full"):
            await state.models.register(a_model("m1"))
    assert not await state.jobs.unended()
    assert not await state.sessions.unended()
    assert await state.models.get("m1") is None


async def test_a_round_goes_on_to_its_end(bench: Bench, state: RedisState) -> None:
    await state.roster.opened(stream := bench.stream("c1", View.TRAINING))
    lease = await opened(state, ["c1", "c2", "c3", "c4"])
    with full(bench):
        assert len(await state.tasks.claim([stream])) == 1
        for client in ("c1", "c2"):
            await receive(state, client, f"u-{client}")
        await state.jobs.accept(lease, "c1")
        await state.jobs.reject(lease, "c2", "not_finite", "")
        failed = {"task_id": "t-j1-c3", "job_id": "", "detail": ""}
        assert await state.jobs.fail_client(client="c3", reason="client_failed", **failed)
        assert await state.jobs.ask_again(lease, "c3", "again")
        await state.jobs.add_unrecorded(client="c4", task_id="t-j1-c4", job_id="j1")
        await state.jobs.close(lease, "all answered")
        await state.jobs.commit(lease, a_model("m1"), {})
    assert (await job_of(state)).state is State.SUCCEEDED
    assert await client_state(state, "c1") is ClientState.ACCEPTED
    newest = await state.models.newest()
    assert newest is not None
    assert newest.model_id == "m1"


async def test_work_is_cancelled_and_ended(bench: Bench, state: RedisState) -> None:
    lease = await opened(state, ["c1"])
    await state.jobs.submit(new_job("j2"))
    await state.sessions.start(Session("s1", State.QUEUED, "", "m0", "m0", {"rounds": "3"}))
    with full(bench):
        await state.jobs.end(lease, State.FAILED, "because")
        assert (await job_of(state)).state is State.FAILED
        cancelled = await state.jobs.cancel("j2", "by a person")
        session = await state.sessions.cancel("s1", "by a person")
    assert await state.jobs.get("j1") is None  # retention made room
    assert cancelled is not None
    assert cancelled.state is State.CANCELLED
    assert session is not None
    assert session.state is State.CANCELLED


async def test_a_session_takes_its_last_step(bench: Bench, state: RedisState) -> None:
    await state.sessions.start(Session("s1", State.QUEUED, "", "m0", "m0", {"rounds": "3"}))
    with full(bench):
        lease = await state.sessions.claim("r1")
        assert lease is not None
        session = await state.sessions.get("s1")
        assert session is not None
        await state.sessions.advance(lease, replace(session, state=State.SUCCEEDED), None)
        with pytest.raises(Ended):
            await state.sessions.advance(lease, session, None)


async def test_leases_are_renewed_taken_over_and_given_back(bench: Bench, state: RedisState) -> None:
    lease = await claimed(state)
    with full(bench):
        lost, views = await state.leases.renew("r1", [lease])
        assert not lost
        (view,) = [view for view in views if view.work == lease.work]
        taken = await state.leases.take_over(view, "r2")
        assert taken is not None
        await state.leases.release(taken)


async def test_models_go_and_what_retention_no_longer_keeps(bench: Bench, state: RedisState) -> None:
    tight = bench.state(keep_ms=0, keep_jobs=0, keep_sessions=0)
    await state.models.mark_complete()
    await state.models.register(Model("m1", "", size=3, sha256="ab"))
    await state.models.register(Model("m2", "", size=3, sha256="ab"))
    await closed(state, lease := await opened(state, ["c1"]))
    await state.jobs.end(lease, State.FAILED, "")
    with full(bench):
        assert await state.models.forget(["m1"]) == ["m1"]
        assert await state.models.condemn(["x1"]) == ["x1"]
        assert await state.upkeep.born_ms() > 0
        await state.upkeep.begin("r1", hold_ms=1000, every_ms=1000)
        assert (await tight.upkeep.purge(10)).jobs == ["j1"]
        await state.upkeep.done("r1", every_ms=1000)
        await state.archive.begin(replace=True)
    assert await state.models.newest() is None


async def test_known_clients_stay_known(bench: Bench, state: RedisState) -> None:
    await state.roster.opened(Stream("r1:1", "c1", View.ALL, "0.6"))
    with full(bench):
        await state.roster.beat({"c1": "0.6"})
        assert await state.roster.active(View.ALL) == ["c1"]
        await state.roster.closed(Stream("r1:1", "c1", View.ALL, "0.6"), by_us=False)
        await state.roster.forget_replica("r1")
        assert await state.roster.active(View.ALL) == []
