"""The log that all replicas follow: nothing is missed, and what is missed is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from combiner.adapters.state import RedisState
from combiner.domain.types import ClientState, Kind

from tests.contract.state_kit import (
    DEADLINE_S,
    Bench,
    Server,
    claimed,
    closed,
    eventually,
    following,
    new_job,
    opened,
    receive,
    running_server,
)


@pytest.fixture
def own_server() -> Iterator[Server]:
    """For tests that kill it."""
    with running_server() as server:
        yield server


def kill_connections(bench: Bench) -> None:
    own = bench.raw.client_id()
    for client in bench.raw.client_list():
        if int(client["id"]) != own:
            bench.raw.client_kill_filter(_id=client["id"])


def blocked_readers(bench: Bench) -> int:
    return sum(client["cmd"] == "xread" for client in bench.raw.client_list())


async def test_every_change_is_told_in_order(state: RedisState) -> None:
    async with following(state) as log:
        lease = await opened(state, ["c1", "c2", "c3"])
        await receive(state, "c1", "u1")
        await state.jobs.accept(lease, "c1")
        await receive(state, "c2", "u2")
        await state.jobs.reject(lease, "c2", "shape", "")
        await receive(state, "c9", "u9", task_id="")
        await state.jobs.fail_client(client="c3", task_id="", job_id="j1", reason="client_failed", detail="")
        await state.jobs.add_unrecorded(client="c3", task_id="", job_id="j1")
        await closed(state, lease)
        await state.jobs.cancel("j1", "by hand")
        await log.until("the end", lambda: log.words()[-1] == "cancelled")
    events = log.events[1:]
    assert [(event.what, event.client, event.reason) for event in events if event.what != "tasks"] == [
        ("queued", "", ""),
        ("running", "", ""),
        ("asked", "", ""),
        ("received", "c1", ""),
        ("accepted", "c1", ""),
        ("received", "c2", ""),
        ("rejected", "c2", "shape"),
        ("listed", "c9", "not_asked"),
        ("failed", "c3", "client_failed"),
        ("closed", "", "all answered"),
        ("cancelled", "", "by hand"),
    ]
    of_job = [event for event in events if event.what != "tasks"]
    records = {event.client: event.record for event in of_job if event.record is not None}
    assert {client: (record.state, record.update_id) for client, record in records.items()} == {
        "c1": (ClientState.RECEIVED, "u1"),
        "c2": (ClientState.RECEIVED, "u2"),
    }
    assert [event.version for event in of_job] == list(range(1, len(of_job) + 1))
    last = of_job[-1]
    assert (last.state, last.asked, last.accepted, last.rejected, last.failed) == ("CANCELLED", 3, 1, 2, 1)
    assert last.at_ms > 0
    assert [event.seq for event in events] == sorted(event.seq for event in events)


async def test_two_replicas_hear_the_same(bench: Bench) -> None:
    one, two = bench.state(), bench.state()
    async with following(one) as first, following(two) as second:
        await opened(one, ["c1"], kind=Kind.INFERENCE)
        await two.jobs.cancel("j1", "")
        for log in (first, second):
            await log.until("the end", lambda log=log: log.words()[-1] == "cancelled")
    assert first.events[1:] == second.events[1:]


async def test_nothing_is_missed_when_the_connection_is_cut(bench: Bench, state: RedisState) -> None:
    async with following(state) as log:
        for number in range(20):
            if number % 5 == 0:
                kill_connections(bench)
            await state.jobs.submit(new_job(f"j{number}"))
        await log.until("all jobs", lambda: len(log.events) == 21)
    assert log.words() == ["resync"] + ["queued"] * 20


async def test_nothing_is_missed_when_the_server_is_killed(own_server: Server, bench: Bench) -> None:
    bench = Bench(own_server, "t:", bench.raw, bench.opened, bench.numbers)
    state = bench.state()
    async with following(state) as log:
        await state.jobs.submit(new_job("j1"))
        await log.until("j1", lambda: len(log.events) == 2)
        own_server.kill()
        own_server.start()
        await state.jobs.submit(new_job("j2"))
        await log.until("j2", lambda: len(log.events) == 3)
        assert (await state.jobs.get("j1")) is not None
    assert log.words() == ["resync", "queued", "queued"]
    assert log.events[2].job_id == "j2"


async def test_a_trimmed_log_says_resync(bench: Bench, state: RedisState) -> None:
    async with following(state) as log:
        await state.jobs.submit(new_job("j0"))
        await log.until("j0", lambda: len(log.events) == 2)
        with bench.raw.pipeline(transaction=True) as at_once:
            for number in range(3):
                at_once.xadd(bench.key("log"), {"n": 2 + number, "what": "queued", "job_id": f"x{number}"})
            at_once.xtrim(bench.key("log"), maxlen=1, approximate=False)
            at_once.set(bench.key("log:n"), 4)
            at_once.execute()
        await log.until("what is left", lambda: len(log.events) == 4)
        await state.jobs.submit(new_job("j1"))
        await log.until("j1", lambda: len(log.events) == 5)
    assert log.words() == ["resync", "queued", "resync", "queued", "queued"]
    assert log.events[3].job_id == "x2"


async def test_a_log_that_was_lost_says_resync(bench: Bench, state: RedisState) -> None:
    async with following(state) as log:
        await state.jobs.submit(new_job("j0"))
        await log.until("j0", lambda: len(log.events) == 2)
        bench.raw.delete(*bench.raw.keys(bench.key("*")))
        await log.until("a resync", lambda: log.words()[-1] == "resync")
        await state.jobs.submit(new_job("j1"))
        await log.until("j1", lambda: log.words()[-1] == "queued")
    assert log.words() == ["resync", "queued", "resync", "queued"]


async def test_the_log_is_bounded(bench: Bench) -> None:
    state = bench.state(log_length=100)
    for number in range(600):
        await state.settings.put({"n": str(number)})
    assert bench.raw.xlen(bench.key("log")) < 300  # trimmed by whole nodes


async def test_following_ends_when_it_is_cancelled(bench: Bench, state: RedisState) -> None:
    for _ in range(20):
        async with following(state) as log:
            await state.settings.put({"n": "1"})
            await log.until("the event", lambda log=log: len(log.events) == 2)
    assert blocked_readers(bench) == 0


async def test_status_messages_are_kept_in_a_bounded_stream(bench: Bench) -> None:
    state = bench.state(max_statuses=100)
    await state.log.statuses([])
    for number in range(6):
        await state.log.statuses([{"client": "c1", "status": f"ü{number}.{n}"} for n in range(100)])
    assert bench.raw.xlen(bench.key("said")) < 300  # trimmed by whole nodes
    [(_, newest)] = bench.raw.xrevrange(bench.key("said"), count=1)
    assert newest == {"client": "c1", "status": "ü5.99"}


async def test_the_clock_is_that_of_redis(bench: Bench, state: RedisState) -> None:
    seconds, _ = bench.raw.time()
    assert abs(await state.log.now_ms() - seconds * 1000) < DEADLINE_S * 1000


async def test_idle_costs_next_to_nothing(bench: Bench) -> None:
    """With 100 clients and no jobs, only renewals (every 2 s) and the log's reader (every 4 s) cost."""
    state = bench.state()
    for number in range(100):
        await state.roster.opened(bench.stream(f"c{number}"))
    await claimed(state)
    await state.jobs.cancel("j1", "")
    await state.leases.renew("r1", [])
    async with following(state):
        bench.raw.config_resetstat()
        await state.leases.renew("r1", [])
        of_renewal = sum(calls(bench).values())
        # how many it takes from one timeout of the blocking read to the next
        bench.raw.config_resetstat()
        await eventually("three idle reads", lambda: calls(bench)["xread"] >= 3)
        of_reader = sum(calls(bench).values()) / 3
    # each command within a script counts, too
    assert of_renewal / 2 + of_reader / 4 <= 10


def calls(bench: Bench) -> Counter[str]:
    """Commands since the last reset, those of this test left out."""
    stats = {name.removeprefix("cmdstat_"): stat for name, stat in bench.raw.info("commandstats").items()}
    return Counter(
        {name: stat["calls"] for name, stat in stats.items() if name not in ("info", "config|resetstat")}
    )
