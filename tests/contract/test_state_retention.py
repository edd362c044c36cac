"""Retention by memory: what ended goes before Redis is full, and then nothing new begins."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from combiner.adapters.limits import Limits
from combiner.adapters.state import RedisState
from combiner.domain.types import Session, State
from combiner.ports import Report, ReportKind, StateFull

from tests.contract.state_kit import (
    Bench,
    Kind,
    a_model,
    eventually,
    listed,
    new_job,
    opened,
    receive,
    twice,
)

MIB = 1024 * 1024
LIMITS = Limits()


def memory_at(bench: Bench, part: float, room: int = 0) -> None:
    """So much of the memory that Redis may use is used now, and `room` bytes less."""
    info = bench.raw.info("memory")
    used = info["used_memory"] - info["mem_not_counted_for_evict"]
    bench.raw.config_set("maxmemory", int((used + room) / part))


@pytest.fixture(autouse=True)
def no_limit_left(bench: Bench) -> Iterator[None]:
    yield
    bench.raw.config_set("maxmemory", "0")


async def answered(state: RedisState, job_id: str, size: int = 65_536) -> None:
    """A validation that has ended, and holds `size` bytes."""
    await opened(state, ["c1"], job_id, kind=Kind.VALIDATION)
    await state.jobs.answer(client="c1", task_id="", job_id=job_id, model_id="", data="x" * size)
    await state.jobs.cancel(job_id, "")


async def test_ended_work_goes_before_redis_is_full(bench: Bench, state: RedisState) -> None:
    for number in range(20):
        await answered(state, f"j{number}")
    memory_at(bench, LIMITS.purge_at, 10 * 65_536)
    for number in range(20, 60):
        await answered(state, f"j{number}")
    kept = [job.job_id for job in await listed(state.jobs.list())]
    assert 15 <= len(kept) <= 35
    assert kept == [f"j{number}" for number in range(60 - len(kept), 60)]  # the newest ones
    memory = await state.upkeep.memory()
    assert memory.part < LIMITS.purge_at + 0.05
    assert memory.removed_early == 60 - len(kept)


async def test_a_job_that_runs_and_the_newest_that_ended_stay(bench: Bench, state: RedisState) -> None:
    tight = bench.state(max_running_jobs=2)
    await opened(tight, ["c1"], "runs")
    for number in range(3):
        await answered(tight, f"j{number}")
    memory_at(bench, 0.95)
    assert (await tight.upkeep.expired(10)).jobs == ["j0", "j1"]
    assert (await tight.upkeep.purge(10)).jobs == ["j0", "j1"]
    assert not await tight.upkeep.purge(10)
    assert [job.job_id for job in await listed(tight.jobs.list())] == ["runs", "j2"]


async def test_sessions_go_by_their_age_among_jobs(bench: Bench, state: RedisState) -> None:
    config = {"rounds": "1", "note": "x" * 10_000}
    for number in range(3):
        await state.sessions.start(Session(f"s{number}", State.QUEUED, "", "m", "m", config))
        await state.sessions.cancel(f"s{number}", "")
        await answered(state, f"j{number}", 1000)
    memory_at(bench, 0.95)
    gone = await state.upkeep.purge(10)
    assert (gone.jobs, gone.sessions) == (["j0", "j1"], ["s0", "s1"])


async def test_one_step_does_not_remove_everything(bench: Bench, state: RedisState) -> None:
    for number in range(6):
        await answered(state, f"j{number}", 10)
        bench.raw.hset(bench.key(f"job:j{number}"), "weight", 6000)
    bench.raw.set(bench.key("records"), 6 * 6000)
    tight = bench.state(keep_records=1)
    assert (await tight.upkeep.purge(100)).jobs == ["j0", "j1", "j2"]
    assert (await tight.upkeep.purge(100)).jobs == ["j3", "j4"]


async def test_nothing_new_begins_in_the_reserve(bench: Bench, state: RedisState) -> None:
    lease = await opened(state, ["c1"])
    await state.models.register(a_model("m0"))
    memory_at(bench, 0.92)
    session = Session("s1", State.QUEUED, "", "m0", "m0", {"rounds": "3"})
    words = r"uses \d+\.\d of \d+\.\d MiB \(maxmemory\).*combiner model prune"
    for begin in (
        lambda: state.jobs.submit(new_job("j2")),
        lambda: state.sessions.start(session),
        lambda: state.models.register(a_model("m1")),
    ):
        with pytest.raises(StateFull, match=words):
            await begin()
    # What is there already is answered with, and what runs goes on.
    assert (await state.models.register(a_model("m0"))).model_id == "m0"
    assert (await state.jobs.submit(new_job("j1"))).job_id == "j1"
    await receive(state, "c1", "u1")
    await state.jobs.accept(lease, "c1")
    await state.jobs.close(lease, "all answered")
    await state.jobs.commit(lease, a_model("m1"), {})
    bench.raw.config_set("maxmemory", "0")
    await state.jobs.submit(new_job("j2"))


async def test_silent_clients_go_in_the_reserve_and_not_before(bench: Bench) -> None:
    state = bench.state(max_roster=40)
    clients = [f"c{number:02}" for number in range(40)]
    for client in clients:
        await state.roster.opened(bench.stream(client))
    bench.raw.zadd(bench.key("seen"), dict.fromkeys(clients[:35], bench.raw.time()[0] * 1000 - 60_000))
    memory_at(bench, 0.85)
    assert not (await state.upkeep.purge(100)).clients
    memory_at(bench, 0.95)
    assert (await state.upkeep.purge(100)).clients == clients[:30]


async def test_a_training_record_weighs_no_less_than_it_takes(bench: Bench, state: RedisState) -> None:
    clients = [f"client-{number:04}" for number in range(300)]
    job_id = "3f1c7a52-9be0-4c55-8d2e-0a1b2c3d4e5f"
    await opened(state, clients, job_id)
    updates = {client: f"00000000-0000-4000-8000-{number:012}" for number, client in enumerate(clients)}
    await asyncio.gather(*(receive(state, *update, job_id) for update in updates.items()))
    await state.jobs.cancel(job_id, "")
    taken = sum(
        bench.raw.memory_usage(key, samples=0)
        for pattern in ("job:*", "clients:*", "update:*")
        for key in bench.raw.keys(bench.key(pattern))
    )
    weighed = 256 * int(bench.raw.get(bench.key("records")) or 0)
    assert taken <= weighed <= 3 * taken


async def test_the_log_is_bounded_in_bytes(bench: Bench) -> None:
    part = 0.0002
    state = bench.state(log_share=part)
    clients = ["x" * 200 + str(number) for number in range(100)]
    for number in range(8):
        job_id = f"j{number}"
        await opened(state, clients, job_id)
        bad = {"reason": "not_finite", "detail": "y" * 200, "update_id": "u" * 100}
        refused = (state.jobs.refuse(client=c, task_id="", job_id=job_id, **bad) for c in clients)
        await asyncio.gather(*refused)
        await state.jobs.cancel(job_id, "")
    assert bench.raw.memory_usage(bench.key("log"), samples=0) <= part * LIMITS.assumed_memory + 64 * 1024
    assert bench.raw.xlen(bench.key("log")) > 50


async def test_status_messages_are_bounded_in_bytes(bench: Bench) -> None:
    state = bench.state(said_share=0.0002)
    for number in range(20):
        await state.log.statuses([{"client": f"c{number}", "status": "s" * 500}] * 100)
    assert bench.raw.memory_usage(bench.key("said"), samples=0) <= 0.0002 * LIMITS.assumed_memory + 8192


def report(client: str, *names: str, text: str = "x" * 64) -> Report:
    return Report(client, ReportKind.ATTRIBUTE, dict.fromkeys(names, text))


async def test_nothing_is_kept_of_what_names_without_a_stream_tell(bench: Bench, state: RedisState) -> None:
    await state.roster.opened(bench.stream("c1"))
    await state.reports.add([report("c1", "site"), report("made-up", "site")])
    known, made_up = await state.reports.of_clients(["c1", "made-up"])
    assert dict(known.attributes) == {"site": "x" * 64}
    assert not made_up.attributes
    assert not bench.raw.exists(bench.key("told:made-up"))


async def test_nothing_that_clients_tell_is_kept_in_the_reserve(bench: Bench, state: RedisState) -> None:
    await state.roster.opened(bench.stream("c1"))
    await opened(state, ["c1"])
    memory_at(bench, 0.92)
    told = Report("c1", ReportKind.TELEMETRY, {"cpu": "1.0"})
    await state.reports.add([told])
    assert not (await state.reports.of_clients(["c1"]))[0].telemetry
    assert not (await state.reports.of_jobs(["j1"]))[0]
    bench.raw.config_set("maxmemory", "0")
    await state.reports.add([told])
    assert (await state.reports.of_clients(["c1"]))[0].telemetry == {"cpu": 1.0}
    assert (await state.reports.of_jobs(["j1"]))[0]["c1"].telemetry == {"cpu": 1.0}


async def test_what_a_client_tells_is_bounded(bench: Bench, state: RedisState) -> None:
    await state.roster.opened(bench.stream("c1"))
    await twice(lambda: state.reports.add([report("c1", *(f"n{number}" for number in range(99)))]))
    await state.reports.add([report("c1", "n99"), Report("c1", ReportKind.TELEMETRY, {"cpu": "1.0"})])
    (told,) = await state.reports.of_clients(["c1"])
    assert len(told.attributes) == LIMITS.max_told
    assert told.telemetry == {"cpu": 1.0}


async def test_what_all_clients_tell_is_bounded(bench: Bench) -> None:
    state = bench.state(told_share=0.00005)
    room = round(0.00005 * LIMITS.assumed_memory)
    clients = [f"c{number}" for number in range(100)]
    for client in clients:
        await state.roster.opened(bench.stream(client))
        await state.reports.add([report(client, *(f"n{number}" for number in range(16)))])
    kept = sum(len(told.attributes) for told in await state.reports.of_clients(clients))
    assert room * 0.8 < kept * (64 + 11 + 48) <= room
    # A value that is known may change, and who is forgotten makes room.
    assert int(bench.raw.get(bench.key("told:bytes")) or 0) <= room
    await state.reports.add([report("c0", "n0", text="short")])
    wide = bench.state(max_roster=1)
    bench.raw.zadd(bench.key("seen"), dict.fromkeys(clients, 1))
    await wide.upkeep.purge(1000)
    assert int(bench.raw.get(bench.key("told:bytes")) or 0) <= 4 * 2000
    await eventually("nothing told is left", lambda: len(bench.raw.keys(bench.key("told:c*"))) <= 1)
