"""Records of the shared state, taken out and put back: everything is as it was, and goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from combiner.adapters.state import RedisState
from combiner.domain.types import Job, Kind, Model, Session, State
from combiner.ports import Ask, Conflict, NotEmpty, Unreadable, Verdict, View

from tests.contract.state_kit import (
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
)

ORDER = ("model", "answers", "job", "results", "session")


async def a_past(state: RedisState) -> None:
    """A training that ended with a model, a validation of it, and an ended session."""
    await state.settings.put({"max_clients": "7"})
    await state.sessions.start(Session("s0", State.QUEUED, "", "seed", "seed", {"rounds": "1"}))
    await state.sessions.cancel("s0", "by hand")
    await state.models.register(a_model("seed"))
    await state.jobs.submit(new_job("j0", session_id="s0"))
    lease = await state.jobs.claim("r1")
    assert lease is not None
    await state.jobs.open(lease, [Ask(c, f"t-j0-{c}") for c in ("c1", "c2")], 60_000, "{}")
    await receive(state, "c1", "u1", "j0")
    await receive(state, "c9", "u9", "j0", task_id="")
    await state.jobs.accept(lease, "c1")
    await state.jobs.add_unrecorded(client="c2", task_id="t-j0-c2", job_id="j0")
    await closed(state, lease)
    await state.jobs.commit(lease, Model("m1", session_id="s0", job_id="j0", size=3, sha256="ab"), {"x": 1.5})
    lease = await opened(state, ["c1"], "v0", Kind.VALIDATION)
    await state.jobs.answer(client="c1", task_id="t-v0-c1", job_id="v0", model_id="", data='{"a": 1}')
    await closed(state, lease)
    await state.jobs.end(lease, State.SUCCEEDED, "", figures=figures({"c1": '{"a": 1}'}))


async def records(state: RedisState) -> list[Mapping[str, Any]]:
    return await listed(state.archive.dump())


async def put_back(state: RedisState, found: list[Mapping[str, Any]], *, replace: bool = False) -> None:
    await state.archive.begin(replace=replace)
    for kind in ORDER:
        for record in found:
            if record["kind"] == kind:
                await state.archive.put(record)
    newest = found[1]
    await state.archive.finish(committed=newest["committed"], put=newest["put"])


async def everything(state: RedisState) -> tuple[list[Session], list[Job], list[Model], Model | None]:
    return (
        await listed(state.sessions.list()),
        await listed(state.jobs.list()),
        await listed(state.models.list()),
        await state.models.newest(),
    )


def derived(bench: Bench) -> dict[str, object]:
    """Every key that retention, lists and answers live by, with what it holds."""
    read = {
        "zset": lambda key: bench.raw.zrange(key, 0, -1, withscores=True),
        "list": lambda key: bench.raw.lrange(key, 0, -1),
        "set": bench.raw.smembers,
        "hash": bench.raw.hgetall,
        "string": bench.raw.get,
    }
    index = ("all:", "ended:", "session-", "update:", "records", "running:", "queue:", "newest:")
    record = ("job:", "clients:", "others:", "unrecorded:", "answers:", "session:", "model")
    found = {}
    for key in bench.raw.keys(bench.key("*")):
        name = key.removeprefix(bench.prefix)
        if name.startswith((*index, *record)):
            found[name] = read[bench.raw.type(key)](key)
    return found


async def test_what_was_taken_out_is_put_back_as_it_was(bench: Bench) -> None:
    old = bench.state()
    other = Bench(bench.server, f"{bench.prefix}new:", bench.raw, bench.opened, bench.numbers)
    new = other.state()
    await a_past(old)
    found = await records(old)
    assert [record["kind"] for record in found] == [
        "settings",
        "newest",
        "session",
        *["job"] * 2,
        "answers",
        *["model"] * 2,
    ]
    assert found[0]["values"] == {"max_clients": "7"}
    await put_back(new, found)
    assert await everything(new) == await everything(old)
    before = {name: value for name, value in derived(bench).items() if not name.startswith("new:")}
    assert derived(other) == before
    assert await new.jobs.submit(new_job("next")) is not None
    assert (await listed(new.jobs.list()))[-1].job_id == "next"  # numbered behind what was put back


async def test_putting_back_again_changes_nothing(bench: Bench, state: RedisState) -> None:
    await a_past(state)
    before = derived(bench)
    for record in await records(state):
        if record["kind"] in ORDER:
            assert await state.archive.put(record) is False
    assert derived(bench) == before


async def test_work_that_had_not_ended_goes_on(bench: Bench) -> None:
    old = bench.state()
    new = Bench(bench.server, f"{bench.prefix}new:", bench.raw, bench.opened, bench.numbers).state()
    await opened(old, ["c1", "c2"], "j1")
    await receive(old, "c1", "u1", "j1")
    await old.jobs.submit(new_job("j2"))
    await old.jobs.submit(new_job("j3"))
    await old.sessions.start(Session("s1", State.QUEUED, "", "m", "m", {"rounds": "1"}))
    async with following(new) as log:
        await put_back(new, await records(old))
        await log.until("the word", lambda: {"resync", "released"} <= set(log.words(1)))
    assert await new.jobs.unended() == ["j1", "j2", "j3"]
    [seen] = [view for view in await new.leases.views() if view.work == "job:j1"]
    assert seen.owner == ""
    lease = await new.leases.take_over(seen, "r9")
    assert lease is not None
    stream = bench.stream("c2", View.TRAINING, replica="r9")
    await new.roster.opened(stream)
    [(_, task)] = await new.tasks.claim([stream])
    assert task.task_id == "t-j1-c2"
    assert (await receive(new, "c1", "u1", "j1")).verdict is Verdict.REPEATED
    assert (await receive(new, "c2", "u1", "j1")).reason == "duplicate"  # u1 counts for c1, still
    await new.jobs.accept(lease, "c1")
    await closed(new, lease)
    await new.jobs.commit(lease, a_model("m2"), {})
    assert (await job_of(new)).state is State.SUCCEEDED
    claimed_next = await new.jobs.claim("r9")
    assert claimed_next is not None
    assert claimed_next.id == "j2"
    assert (await new.sessions.claim("r9")) is not None


async def test_a_state_at_work_is_not_replaced(state: RedisState) -> None:
    await claimed(state)
    await state.sessions.start(Session("s1", State.QUEUED, "", "m", "m", {"rounds": "1"}))
    for replace in (False, True):
        with pytest.raises(Conflict, match="1 jobs and 1 sessions have not ended"):
            await state.archive.begin(replace=replace)
    assert await job_of(state) is not None


async def test_only_a_replacement_takes_what_is_there(bench: Bench, state: RedisState) -> None:
    await a_past(state)
    found = await records(state)
    for number in range(50):
        await state.models.register(a_model(f"x{number}"))
    with pytest.raises(NotEmpty, match="55 jobs, sessions and models"):
        await state.archive.begin(replace=False)
    before = await state.log.now_ms()
    await state.archive.begin(replace=True)
    assert await everything(state) == ([], [], [], None)
    left = {name for name in derived(bench) if name != "records"}
    assert left == set()
    assert await state.upkeep.born_ms() >= before  # objects without a record are not ours to judge
    await put_back(state, found)
    assert [model.model_id for model in await listed(state.models.list())] == ["seed", "m1"]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("job", {"seq": "x"}),
        ("job", {"seq": 10**400}),
        ("job", {"fields": {}}),
        ("job", {"fields": {"job_id": "j0"}}),
        ("job", {"clients": {"c1": "[]"}}),
        ("job", {"clients": {"c1": "no"}}),
        ("answers", {"answers": {"c1": 5}}),
        ("answers", {"at": -1}),
        ("job", {"id": "another"}),
        ("session", {"fields": {"session_id": "s0", "doc": "{}"}}),
        ("session", {"fields": None}),
        ("model", {"fields": {"doc": "[]", "created_ms": "1"}}),
        ("model", {"client_metrics": 5}),
        ("model", {"id": "../../etc"}),
        ("something", {}),
    ],
)
async def test_a_record_that_is_none_is_refused(
    bench: Bench, state: RedisState, kind: str, change: dict[str, object]
) -> None:
    await a_past(state)
    record = next((r for r in await records(state) if r["kind"] == kind), {"id": "x"})
    before = derived(bench)
    with pytest.raises(Unreadable):
        await state.archive.put({**record, "kind": kind, **change})
    assert derived(bench) == before
