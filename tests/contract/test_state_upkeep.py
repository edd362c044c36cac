"""What can go from the shared state, and whose turn it is to see to it."""

from __future__ import annotations

import pytest
from combiner.adapters.state import RedisState
from combiner.domain.types import Model, NewJob, Session, State
from combiner.ports import Conflict

from tests.contract.state_kit import (
    Bench,
    a_model,
    claimed,
    closed,
    eventually,
    listed,
    new_job,
    opened,
    receive,
    twice,
)

HOLD_MS, EVERY_MS = 60_000, 3_600_000


def a_session(session_id: str, seed: str, newest: str) -> Session:
    return Session(session_id, State.QUEUED, "", seed, newest, {"rounds": "1"})


async def registered(state: RedisState, *ids: str) -> None:
    for model_id in ids:
        await state.models.register(a_model(model_id, session_id="s1"))


async def test_a_model_that_is_forgotten_leaves_nothing_behind(bench: Bench, state: RedisState) -> None:
    await registered(state, "m1", "m2")
    assert await twice(lambda: state.models.forget(["m1", "unknown"])) == ["m1"]
    assert await state.models.get("m1") is None
    assert [model.model_id for model in await listed(state.models.list())] == ["m2"]
    assert [model.model_id for model in await listed(state.models.list(session_id="s1"))] == ["m2"]
    assert not [key for key in bench.raw.keys(bench.key("*")) if "m1" in key and "condemned" not in key]


async def test_a_model_in_use_is_not_forgotten(state: RedisState) -> None:
    lease = await opened(state, ["c1"], "j0")
    await receive(state, "c1", "u1", "j0")
    await state.jobs.accept(lease, "c1")
    await closed(state, lease)
    await state.jobs.commit(lease, a_model("committed"), {})
    await registered(state, "old", "parent", "queued", "seed", "of-session", "put")
    await state.jobs.submit(new_job("j1", parent="parent"))
    assert await state.jobs.claim("r1")
    await state.jobs.submit(new_job("j2", parent="queued"))
    await state.sessions.start(a_session("s9", "seed", "of-session"))
    used = {"committed", "parent", "queued", "seed", "of-session", "put"}
    assert await state.models.in_use() == used
    assert await state.models.forget(["old", *sorted(used)]) == ["old"]
    await state.jobs.cancel("j1", "")
    await state.sessions.cancel("s9", "")
    assert set(await state.models.forget(sorted(used))) == {"parent", "seed", "of-session"}


async def test_what_is_being_removed_cannot_become_a_model(bench: Bench, state: RedisState) -> None:
    await registered(state, "m1", "m2")
    # A Redis that may have been lost knows no orphan: all models would be some.
    assert await state.models.unregistered(["m1", "x1"]) == await state.models.condemn(["m1", "x1"]) == []
    await state.models.mark_complete()
    assert await state.models.unregistered(["m1", "x1", "x2"]) == ["x1", "x2"]
    assert await twice(lambda: state.models.condemn(["m1", "x1"])) == ["x1"]
    await state.models.forget(["m1"])
    for model_id in ("m1", "x1"):
        with pytest.raises(Conflict, match="being removed"):
            await state.models.register(a_model(model_id))
    await state.models.register(a_model("x2"))
    lease = await claimed(state)
    await state.jobs.open(lease, [], 1000, "{}")
    await closed(state, lease)
    with pytest.raises(Conflict, match="being removed"):
        await state.jobs.commit(lease, a_model("x1"), {})
    for key in bench.raw.keys(bench.key("condemned:*")):
        assert 0 < bench.raw.pttl(key) <= 3_600_000
        bench.raw.delete(key)
    await state.jobs.commit(lease, a_model("x1"), {})
    assert await state.models.get("x1") is not None


async def test_registering_a_model_again_is_no_conflict(bench: Bench, state: RedisState) -> None:
    await registered(state, "m1")
    bench.raw.set(bench.key("condemned:m1"), "1")
    assert (await state.models.register(a_model("m1"))).model_id == "m1"


async def test_an_update_names_its_job(bench: Bench, state: RedisState) -> None:
    config = {"delete_models_storage": "False"}
    await state.jobs.submit(NewJob("j0", "", new_job("x").kind, "1", "seed", config))
    await state.jobs.cancel("j0", "")
    bench.raw.set(bench.key("update:u0"), "j0\nc9")
    bench.raw.set(bench.key("update:u9"), "gone\nc9")
    await opened(state, ["c1", "c2"])
    await receive(state, "c1", "u1")
    await receive(state, "c2", "u2")
    found = await state.jobs.of_updates(["u0", "u1", "nobody", "u2", "u9"])
    assert {update: (job.job_id, job.state) for update, job in found.items()} == {
        "u0": ("j0", State.CANCELLED),
        "u1": ("j1", State.RUNNING),
        "u2": ("j1", State.RUNNING),
    }
    assert found["u0"].config == config
    assert await state.jobs.of_updates([]) == {}


async def test_what_retention_keeps_no_longer_can_be_looked_at_before_it_goes(bench: Bench) -> None:
    state = bench.state(keep_jobs=1, keep_ms=0, keep_sessions=1, max_roster=1)
    wide = bench.state(roster_ms=2**52)
    for number in range(5):
        await wide.jobs.submit(new_job(f"j{number}"))
        await wide.jobs.cancel(f"j{number}", "")
        await wide.sessions.start(a_session(f"s{number}", "m", "m"))
        await wide.sessions.cancel(f"s{number}", "")
        await wide.roster.opened(bench.stream(f"c{number}"))
    for number in range(4):
        bench.raw.zadd(bench.key("seen"), {f"c{number}": number})
    now = bench.raw.time()
    await eventually("another millisecond", lambda: bench.raw.time() > (now[0], now[1] + 2000))
    assert not await wide.upkeep.expired(100)
    shown = await state.upkeep.expired(100)
    assert (shown.jobs, shown.sessions) == ([f"j{n}" for n in range(4)], [f"s{n}" for n in range(4)])
    assert len(shown.clients) == 4
    assert await state.upkeep.expired(100) == shown  # looking changes nothing
    assert (await state.upkeep.purge(3)).jobs == ["j0", "j1", "j2"]
    assert (await state.upkeep.purge(3)).jobs == ["j3"]
    assert not await state.upkeep.purge(3)
    assert [job.job_id for job in await listed(state.jobs.list())] == ["j4"]
    assert [session.session_id for session in await listed(state.sessions.list())] == ["s4"]


async def test_house_keeping_is_one_replicas_at_a_time(bench: Bench, state: RedisState) -> None:
    async def begin(replica: str) -> int:
        return await state.upkeep.begin(replica, hold_ms=HOLD_MS, every_ms=EVERY_MS)

    assert 0 < await begin("r1") <= EVERY_MS  # not due yet
    bench.raw.hset(bench.key("upkeep"), "due", "0")
    assert await begin("r1") == 0
    assert await begin("r1") == 0  # holds it longer
    assert 0 < await begin("r2") <= HOLD_MS
    await state.upkeep.done("r2", every_ms=EVERY_MS)  # not its turn
    assert await begin("r1") == 0
    await twice(lambda: state.upkeep.done("r1", every_ms=EVERY_MS))
    assert HOLD_MS < await begin("r1") <= EVERY_MS
    assert HOLD_MS < await begin("r2") <= EVERY_MS


async def test_house_keeping_of_a_dead_replica_is_another_ones(bench: Bench, state: RedisState) -> None:
    bench.raw.hset(bench.key("upkeep"), mapping={"owner": "dead", "until": "1", "due": "0"})
    assert await state.upkeep.begin("r2", hold_ms=HOLD_MS, every_ms=EVERY_MS) == 0
    assert await state.upkeep.begin("dead", hold_ms=HOLD_MS, every_ms=EVERY_MS) > 0


async def test_a_state_knows_since_when_it_is_kept(bench: Bench, state: RedisState) -> None:
    before = await state.log.now_ms()
    await state.settings.put({"n": "1"})
    born = await state.upkeep.born_ms()
    assert before <= born <= await state.log.now_ms()
    assert await bench.state().upkeep.born_ms() == born
    bench.raw.delete(bench.key("born"))  # as a state of before has it
    assert await twice(state.upkeep.born_ms) >= born


async def test_all_leases_can_be_looked_at(state: RedisState) -> None:
    lease = await claimed(state)
    _, views = await state.leases.renew("r1", [lease])
    assert await state.leases.views() == views
    assert {view.work for view in views} == {"job:j1", "replica:r1"}


async def test_sessions_that_have_not_ended_are_known_in_order(state: RedisState) -> None:
    for number in range(3):
        await state.sessions.start(a_session(f"s{number}", "m", "m"))
    await state.sessions.cancel("s1", "")
    assert await state.sessions.claim("r1")
    assert await state.sessions.unended() == ["s0", "s2"]


def test_the_model_of_a_session_is_written_for_the_scripts() -> None:
    """`models_in_use` reads these two out of the session's document, and the session out of the model's."""
    from combiner.adapters.codec import model_entry, session_doc

    assert '"seed_model_id":"a","model_id":"b"' in session_doc(a_session("s", "a", "b"))
    assert '"session_id":"s"' in str(model_entry(Model("m", session_id="s"))["doc"])
