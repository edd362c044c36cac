"""Leases: who works on what, and how work changes hands."""

from __future__ import annotations

import asyncio

import pytest
from combiner.adapters.state import RedisState
from combiner.domain.types import Kind, State
from combiner.ports import Ended, Lease, LeaseLost, LeaseView

from tests.contract.state_kit import Bench, claimed, following, new_job, opened, receive, twice


def view_of(views: list[LeaseView], work: str) -> LeaseView:
    return next(view for view in views if view.work == work)


async def test_renewing_changes_the_beat_and_nothing_else(state: RedisState) -> None:
    lease = await claimed(state)
    _, first = await state.leases.renew("r1", [lease])
    lost, second = await state.leases.renew("r1", [lease])
    assert lost == []
    for work in (lease.work, "replica:r1"):
        before, after = view_of(first, work), view_of(second, work)
        assert (after.owner, after.token) == ("r1", before.token)
        assert after.beat != before.beat
    assert view_of(first, lease.work).token == lease.token


async def test_one_call_renews_everything_and_shows_all_replicas(bench: Bench) -> None:
    state = bench.state(max_running_jobs=2)
    leases = [await claimed(state, "j1"), await claimed(state, "j2")]
    await state.leases.renew("r2", [])
    lost, views = await state.leases.renew("r1", leases)
    assert lost == []
    assert {view.work: view.owner for view in views} == {
        "job:j1": "r1",
        "job:j2": "r1",
        "replica:r1": "r1",
        "replica:r2": "r2",
    }


async def test_a_lease_is_taken_over_exactly_as_seen(state: RedisState) -> None:
    lease = await claimed(state)
    _, views = await state.leases.renew("r2", [])
    seen = view_of(views, lease.work)
    await state.leases.renew("r1", [lease])
    assert await state.leases.take_over(seen, "r2") is None  # it was renewed
    _, views = await state.leases.renew("r2", [])
    taken = await state.leases.take_over(view_of(views, lease.work), "r2")
    assert taken is not None
    assert taken.token > lease.token
    lost, views = await state.leases.renew("r1", [lease])
    assert lost == [lease]
    assert view_of(views, lease.work).owner == "r2"
    with pytest.raises(LeaseLost):
        await state.jobs.close(lease, "")
    await state.jobs.close(taken, "")


async def test_one_of_two_takes_over(bench: Bench) -> None:
    states = [bench.state(), bench.state()]
    await claimed(states[0])
    _, views = await states[0].leases.renew("r9", [])
    seen = view_of(views, "job:j1")
    taken = await asyncio.gather(*(s.leases.take_over(seen, f"r{n}") for n, s in enumerate(states)))
    assert sorted(lease is None for lease in taken) == [False, True]


async def test_work_that_was_claimed_unawares_can_be_taken_over_by_its_owner(state: RedisState) -> None:
    """The reply to a claim was lost: the job runs under our name, but we hold no lease."""
    lost_lease = await claimed(state)
    _, views = await state.leases.renew("r1", [])
    seen = view_of(views, "job:j1")
    assert seen.owner == "r1"
    lease = await state.leases.take_over(seen, "r1")
    assert lease is not None
    with pytest.raises(LeaseLost):
        await state.jobs.close(lost_lease, "")
    await state.jobs.end(lease, State.FAILED, "")


async def test_a_released_lease_can_be_taken_at_once(state: RedisState) -> None:
    lease = await opened(state, ["c1"])
    async with following(state) as log:
        await twice(lambda: state.leases.release(lease))
        await log.until("the release", lambda: "released" in log.words())
        await state.jobs.submit(new_job("j2"))
        await log.until("the next event", lambda: "queued" in log.words())
    assert log.words() == ["resync", "released", "queued"]
    assert log.events[1].job_id == "j1"
    lost, views = await state.leases.renew("r1", [lease])
    assert lost == [lease]
    seen = view_of(views, lease.work)
    assert seen.owner == ""
    assert await state.leases.take_over(seen, "r2") is not None


async def test_an_ended_job_has_no_lease(state: RedisState) -> None:
    lease = await claimed(state)
    await state.jobs.cancel("j1", "")
    lost, views = await state.leases.renew("r1", [lease])
    assert lost == [lease]
    assert [view.work for view in views] == ["replica:r1"]
    seen = LeaseView(lease.work, "r1", lease.token, 0)
    assert await state.leases.take_over(seen, "r2") is None
    with pytest.raises(Ended):
        await state.leases.release(lease)


async def owners_died(state: RedisState, job_id: str = "j1") -> int:
    job = await state.jobs.get(job_id)
    assert job is not None
    return job.owners_died


async def taken_over(state: RedisState, work: str, replica: str) -> Lease:
    lease = await state.leases.take_over(view_of(await state.leases.views(), work), replica)
    assert lease is not None
    return lease


async def test_owners_that_die_are_counted_while_no_more_is_folded(state: RedisState) -> None:
    lease = await opened(state, ["c1", "c2", "c3"])
    for number in range(3):
        assert await owners_died(state) == number
        lease = await taken_over(state, lease.work, f"r{number + 2}")
    await receive(state, "c1", "u1")
    await state.jobs.accept(lease, "c1", folded=0)  # what is accepted is still to be folded
    lease = await taken_over(state, lease.work, "r5")
    assert await owners_died(state) == 4
    await receive(state, "c2", "u2")
    await state.jobs.accept(lease, "c2", folded=1)
    lease = await taken_over(state, lease.work, "r6")
    assert await owners_died(state) == 1
    await receive(state, "c3", "u3")
    await state.jobs.accept(lease, "c3", folded=0)  # folded anew, and no further than before
    await taken_over(state, lease.work, "r7")
    assert await owners_died(state) == 2


async def test_answers_are_the_progress_of_a_validation(state: RedisState) -> None:
    lease = await opened(state, ["c1", "c2"], kind=Kind.VALIDATION)
    lease = await taken_over(state, lease.work, "r2")
    lease = await taken_over(state, lease.work, "r3")
    assert await owners_died(state) == 2
    await state.jobs.answer(client="c1", task_id="", job_id="j1", model_id="", data="{}")
    await taken_over(state, lease.work, "r4")
    assert await owners_died(state) == 1


async def test_work_that_was_given_back_or_claimed_unawares_counts_for_nothing(state: RedisState) -> None:
    lease = await opened(state, ["c1"])
    await state.leases.release(lease)
    lease = await taken_over(state, lease.work, "r2")
    await taken_over(state, lease.work, "r2")
    assert await owners_died(state) == 0


async def test_tokens_grow_even_if_redis_forgets_the_last_ones(bench: Bench) -> None:
    state = bench.state(max_running_jobs=3)
    first = await claimed(state, "j1")
    second = await claimed(state, "j2")
    assert second.token > first.token
    # a Redis that does not sync every write comes back with an older value
    bench.raw.delete(bench.key("fence"))
    await asyncio.sleep(0.002)
    assert (await claimed(state, "j3")).token > second.token


# --- the life of a replica


async def test_a_drained_replica_goes_away_for_good(state: RedisState) -> None:
    _, views = await state.leases.renew("r1", [])
    life = view_of(views, "replica:r1")
    await twice(lambda: state.leases.release(Lease(life.work, life.token)))
    _, views = await state.leases.renew("r1", [])
    assert view_of(views, "replica:r1").owner == ""
    with pytest.raises(LeaseLost):
        await state.leases.release(Lease("replica:unknown", 1))


async def test_the_life_of_a_replica_is_not_work(state: RedisState) -> None:
    _, views = await state.leases.renew("r1", [])
    with pytest.raises(ValueError, match="replica"):
        await state.leases.take_over(views[0], "r2")


async def test_a_replica_lives_from_its_first_stream_on(bench: Bench, state: RedisState) -> None:
    await state.roster.opened(bench.stream("c1", replica="r1"))
    _, views = await bench.state().leases.renew("r2", [])
    life = view_of(views, "replica:r1")
    async with following(state) as log:
        _, views = await state.leases.renew("r1", [])  # which was not told before
        assert view_of(views, "replica:r1").token == life.token
        await bench.state().roster.forget_replica("r1")
        await state.roster.opened(bench.stream("c2", replica="r1"))  # it lives, and does not know yet
        await state.leases.renew("r1", [])
        await log.until("a resync", lambda: log.words() == ["resync", "resync"])
        await state.leases.renew("r1", [])
        await state.settings.put({"n": "1"})
        await log.until("the event", lambda: "settings" in log.words())
    assert log.words() == ["resync", "resync", "settings"]


async def test_a_replica_taken_for_dead_registers_its_streams_again(bench: Bench, state: RedisState) -> None:
    await state.leases.renew("r1", [])
    other = bench.state()
    async with following(state) as log:
        await twice(lambda: other.roster.forget_replica("r1"))
        _, views = await other.leases.renew("r2", [])
        assert [view.work for view in views] == ["replica:r2"]
        await state.leases.renew("r1", [])
        await log.until("a resync", lambda: log.words() == ["resync", "resync"])
        _, views = await state.leases.renew("r1", [])
    assert {view.work for view in views} == {"replica:r1", "replica:r2"}
    assert log.words() == ["resync", "resync"]
