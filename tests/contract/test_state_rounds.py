"""A session of many rounds: what a step costs does not grow with them, and no result is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

from combiner.adapters.state import RedisState
from combiner.domain.types import RoundResult, Session, State
from combiner.ports import Lease

from tests.contract.state_kit import Bench

METRICS = {f"metric-{number}": 0.5 for number in range(20)}
FIELDS_OF_THE_DOCUMENT = {"seed_model_id", "model_id", "round", "failed_in_a_row", "config", "results"}


def result(number: int, state: State = State.SUCCEEDED, attempt: int = 1) -> RoundResult:
    return RoundResult(str(number), f"j-{number}-{attempt}", state, model_id=f"m{number}", metrics=METRICS)


async def running(state: RedisState) -> tuple[Lease, Session]:
    await state.sessions.start(Session("s1", State.QUEUED, "", "m0", "m0", {"rounds": "10000"}))
    lease = await state.sessions.claim("r1")
    session = await state.sessions.get("s1")
    assert lease is not None
    assert session is not None
    return lease, session


async def after(state: RedisState, lease: Lease, session: Session, results: Sequence[RoundResult]) -> Session:
    """The session once each result was recorded as its round ended."""
    for one in results:
        session = replace(session, round=int(one.round_id), results=(*session.results, one))
        session = await state.sessions.advance(lease, session, None)
    return session


async def all_results(state: RedisState, session: Session) -> list[RoundResult]:
    earlier = [result async for page in state.sessions.earlier(session) for result in page]
    return [*earlier, *session.results]


def written(bench: Bench) -> int:
    """Bytes that Redis was sent, and bytes that it appended to its file."""
    return int(bench.raw.info("stats")["total_net_input_bytes"]) + int(
        bench.raw.info("persistence")["aof_current_size"]
    )


async def test_a_step_of_the_thousandth_round_writes_no_more_than_one_of_the_tenth(bench: Bench) -> None:
    state = bench.state()
    lease, session = await running(state)
    cost = {}
    for number in range(1, 1001):
        before = written(bench)
        session = await after(state, lease, session, [result(number)])
        cost[number] = written(bench) - before
    assert cost[1000] < 1.1 * cost[10], (cost[10], cost[1000])
    assert session.rounds_done == 1000
    assert await all_results(state, session) == [result(number) for number in range(1, 1001)]


async def test_reading_a_session_reads_the_round_under_way(state: RedisState) -> None:
    lease, session = await running(state)
    failed = result(2, State.FAILED)
    session = await after(state, lease, session, [result(1), failed, result(2, attempt=2)])
    assert await state.sessions.get("s1") == session
    assert session.results == (failed, result(2, attempt=2))
    assert (session.earlier, session.rounds_done, session.failed_rounds) == (1, 2, 1)


async def test_a_round_that_is_tried_very_often_does_not_grow_the_document_either(state: RedisState) -> None:
    lease, session = await running(state)
    tries = [result(1, State.FAILED, attempt) for attempt in range(1, 51)]
    session = await after(state, lease, session, tries)
    assert len(session.results) == 10
    assert session.failed_rounds == 50
    assert await all_results(state, session) == tries


async def test_earlier_results_can_be_read_from_any_number_on(state: RedisState) -> None:
    lease, session = await running(state)
    session = await after(state, lease, session, [result(number) for number in range(1, 251)])
    pages = [page async for page in state.sessions.earlier(session, 120)]
    assert [len(page) for page in pages] == [100, 29]
    assert pages[0][0] == result(121)


async def test_a_document_with_all_results_is_read_and_shortened_by_the_next_step(bench: Bench) -> None:
    """As a release without the list wrote it."""
    state = bench.state()
    lease, session = await running(state)
    whole = [result(number) for number in range(1, 6)]
    document = json.loads(bench.raw.hget(bench.key("session:s1"), "doc"))
    document["results"] = [asdict(one) for one in whole]
    bench.raw.hset(bench.key("session:s1"), "doc", json.dumps(document))
    found = await state.sessions.get("s1")
    assert found is not None
    assert (found.results, found.rounds_done) == (tuple(whole), 5)
    session = await after(state, lease, found, [result(6)])
    assert session.results == (result(6),)
    assert await all_results(state, session) == [*whole, result(6)]


async def test_a_release_without_the_list_can_go_on(bench: Bench) -> None:
    """It knows these fields of the document and no other, and adds its results there."""
    state = bench.state()
    lease, session = await running(state)
    session = await after(state, lease, session, [result(1), result(2)])
    document = json.loads(bench.raw.hget(bench.key("session:s1"), "doc"))
    assert set(document) == FIELDS_OF_THE_DOCUMENT
    document["results"] += [asdict(result(3)), asdict(result(4))]
    bench.raw.hset(bench.key("session:s1"), "doc", json.dumps(document))
    found = await state.sessions.get("s1")
    assert found is not None
    session = await after(state, lease, found, [result(5)])
    assert await all_results(state, session) == [result(number) for number in range(1, 6)]
    assert session.rounds_done == 5


async def test_an_id_used_again_inherits_no_results(bench: Bench) -> None:
    """A release without the list forgets a session and leaves it."""
    state = bench.state()
    bench.raw.rpush(bench.key("session-results:s1"), "{}")
    lease, session = await running(state)
    session = await after(state, lease, session, [result(1), result(2)])
    assert await all_results(state, session) == [result(1), result(2)]


async def test_results_are_in_a_backup(bench: Bench) -> None:
    old = bench.state()
    new = Bench(bench.server, f"{bench.prefix}new:", bench.raw, bench.opened, bench.numbers).state()
    lease, session = await running(old)
    session = await after(old, lease, session, [result(number) for number in range(1, 251)])
    records = [record async for record in old.archive.dump()]
    await new.archive.begin(replace=False)
    for kind in ("results", "results", "session"):  # a part may be sent twice
        for record in records:
            if record["kind"] == kind:
                assert await new.archive.put(record)
    found = await new.sessions.get("s1")
    assert found == session
    assert await all_results(new, session) == await all_results(old, session)
    assert not any([await new.archive.put(record) for record in records if record["kind"] == "results"])
