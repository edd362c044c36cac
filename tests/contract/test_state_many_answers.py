"""Answers to a validation as large as the memory of a process: read in portions, and bounded."""

from __future__ import annotations

import json

import pytest
from combiner.adapters.state import RedisState
from combiner.domain.types import ANSWERS_AT_ONCE, ClientState, Job, Kind, State
from combiner.ports import Lease, Received, Verdict

from tests.contract.state_kit import Bench, answers_of, closed, job_of, opened

CLIENTS = 200
ANSWER = json.dumps({"loss": 0.5, "padding": "x" * 62_000})
MIB = 1 << 20


async def answered(state: RedisState, clients: int = CLIENTS) -> Lease:
    names = [f"c{number:04}" for number in range(clients)]
    lease = await opened(state, names, kind=Kind.VALIDATION)
    for name in names:
        assert (await say(state, name)).verdict is Verdict.RECEIVED
    return lease


async def say(state: RedisState, client: str, data: str = ANSWER) -> Received:
    return await state.jobs.answer(
        client=client, task_id=f"t-j1-{client}", job_id="j1", model_id="", data=data
    )


class Replies:
    """How many bytes Redis sent."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._own = 0
        self._own = self._sent() - self._sent()  # of one look, negative
        self._before = self._sent()

    def _sent(self) -> int:
        return int(self._bench.raw.info("stats")["total_net_output_bytes"])

    def bytes(self) -> int:
        now = self._sent()
        since, self._before = now + self._own - self._before, now
        return since


async def test_no_step_of_a_job_carries_its_answers(bench: Bench) -> None:
    state = bench.state()
    lease = await answered(state)
    replies = Replies(bench)
    job = await job_of(state)
    assert replies.bytes() < 0.1 * MIB
    await closed(state, lease)
    assert replies.bytes() < 0.1 * MIB
    await state.jobs.end(lease, State.SUCCEEDED, "")
    await state.jobs.cancel("j1", "")
    assert [listed.job_id async for listed in state.jobs.list()] == ["j1"]
    assert replies.bytes() < 0.2 * MIB
    assert len(job.answered) == CLIENTS


async def test_answers_are_read_in_portions_of_about_a_mib(bench: Bench) -> None:
    state = bench.state()
    await answered(state)
    job = await job_of(state)
    replies = Replies(bench)
    portions = []
    for clients in job.answer_pages():
        assert len(await state.jobs.answers("j1", clients)) == len(clients) <= ANSWERS_AT_ONCE
        portions.append(replies.bytes())
    assert len(portions) == 13
    assert max(portions) < 1.1 * MIB
    assert list(await answers_of(state, job)) == sorted(job.clients)


async def test_a_backup_carries_answers_in_portions(bench: Bench) -> None:
    old = bench.state()
    new = Bench(bench.server, f"{bench.prefix}new:", bench.raw, bench.opened, bench.numbers).state()
    lease = await answered(old, 40)
    await closed(old, lease)
    await old.jobs.end(lease, State.SUCCEEDED, "")
    records = [record async for record in old.archive.dump()]
    assert max(len(json.dumps(record)) for record in records) < 1.1 * MIB
    parts = [record for record in records if record["kind"] == "answers"]
    assert [len(part["answers"]) for part in parts] == [16, 16, 8]
    await new.archive.begin(replace=False)
    for record in [*parts, *[record for record in records if record["kind"] == "job"]]:
        assert await new.archive.put(record)
    assert await job_of(new) == await job_of(old)
    assert await answers_of(new) == await answers_of(old)
    assert not await new.archive.put(parts[0])


async def test_a_job_in_a_backup_of_version_1_brings_its_answers_along(bench: Bench) -> None:
    old = bench.state()
    new = Bench(bench.server, f"{bench.prefix}new:", bench.raw, bench.opened, bench.numbers).state()
    await answered(old, 2)
    [record] = [record async for record in old.archive.dump() if record["kind"] == "job"]
    await new.archive.begin(replace=False)
    assert await new.archive.put({**record, "answers": await answers_of(old)})
    assert await answers_of(new) == await answers_of(old)


@pytest.mark.parametrize("running", [1, 2])
async def test_answers_have_a_part_of_the_memory(bench: Bench, running: int) -> None:
    """Those that do not fit are rejected and listed; smaller ones may still fit."""
    state = bench.state(max_answer_bytes=6 * MIB, max_running_jobs=running)
    names = [f"c{number:03}" for number in range(120)]
    await opened(state, names, kind=Kind.VALIDATION)
    verdicts = [await say(state, name) for name in names]
    kept = [name for name, got in zip(names, verdicts, strict=True) if got.verdict is Verdict.RECEIVED]
    assert len(kept) == 6 * MIB // running // len(ANSWER)
    assert {got.reason for got in verdicts if got.verdict is Verdict.REJECTED} == {"no_room"}
    job: Job = await job_of(state)
    record = job.clients[names[-1]]
    assert (record.state, record.reason) == (ClientState.REJECTED, "no_room")
    assert f"of {6 / running:.1f} MiB" in record.detail
    assert sorted(await answers_of(state, job)) == kept
    assert await say(state, names[-1]) == Received(Verdict.REJECTED, "j1", "duplicate")


async def test_a_small_answer_still_fits_beside_large_ones(bench: Bench) -> None:
    state = bench.state(max_answer_bytes=6 * MIB)
    names = [f"c{number:03}" for number in range(120)]
    await opened(state, names, kind=Kind.VALIDATION)
    verdicts = {(await say(state, name)).verdict for name in names[:-1]}
    assert verdicts == {Verdict.RECEIVED, Verdict.REJECTED}
    assert (await say(state, names[-1], '{"loss": 1}')).verdict is Verdict.RECEIVED


async def test_the_part_is_one_of_maxmemory(bench: Bench) -> None:
    state = bench.state()
    used = int(bench.raw.info("memory")["used_memory"])
    bench.raw.config_set("maxmemory", 4 * used + 40 * MIB)
    try:
        names = [f"c{number:03}" for number in range(round(2 * used / len(ANSWER)) + 300)]
        await opened(state, names, kind=Kind.VALIDATION)
        verdicts = [await say(state, name) for name in names]
    finally:
        bench.raw.config_set("maxmemory", 0)
    kept = sum(got.verdict is Verdict.RECEIVED for got in verdicts)
    assert kept == round(0.3 * (4 * used + 40 * MIB)) // len(ANSWER)
    assert verdicts[-1].reason == "no_room"
