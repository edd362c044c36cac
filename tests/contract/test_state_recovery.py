"""What the state does after something of ours was broken: ask again, list models anew, refuse to guess."""

from __future__ import annotations

from combiner.adapters.state import RedisState
from combiner.domain.types import ClientState, Job, Model
from combiner.ports import Lease, Verdict

from tests.contract.state_kit import Bench, closed, following, job_of, listed, opened, receive


async def failed(state: RedisState, client: str = "a", reason: str = "client_failed") -> Lease:
    """A job of two clients, one of which has failed."""
    lease = await opened(state, [client, "other"])
    task = f"t-j1-{client}"
    assert await state.jobs.fail_client(client=client, task_id=task, job_id="j1", reason=reason, detail="")
    return lease


async def counts(state: RedisState) -> tuple[int, int]:
    job: Job = await job_of(state)
    return len(job.of_state(ClientState.ASKED)), len(job.of_state(ClientState.FAILED))


async def test_a_client_that_failed_is_asked_again_by_a_new_task(bench: Bench, state: RedisState) -> None:
    lease = await failed(state)
    stream = bench.stream("a")
    await state.roster.opened(stream)
    async with following(state) as follower:
        for _ in range(2):
            assert await state.jobs.ask_again(lease, "a", "again")
        await follower.until("both events", lambda: len(follower.events) == 3)
    assert follower.words(1) == ["asked_again", "tasks"]
    assert (follower.events[1].client, follower.events[1].failed) == ("a", 0)
    assert await counts(state) == (2, 0)
    assert [task.task_id for _, task in await state.tasks.claim([stream])] == ["again"]
    assert (await receive(state, "a", "u1", task_id="t-j1-a")).reason == "not_asked"
    assert (await receive(state, "a", "u1", task_id="again")).verdict is Verdict.RECEIVED


async def test_only_who_said_so_is_asked_again(state: RedisState) -> None:
    lease = await failed(state, reason="client_lost")
    for client in ("a", "other", "nobody"):
        assert not await state.jobs.ask_again(lease, client, "again")
    assert await counts(state) == (1, 1)


async def test_nobody_is_asked_more_often_than_tasks_are_delivered(state: RedisState) -> None:
    lease = await failed(state)
    asked = 0
    while await state.jobs.ask_again(lease, "a", f"again-{asked}"):
        await state.jobs.fail_client(
            client="a", task_id=f"again-{asked}", job_id="j1", reason="client_failed", detail=""
        )
        asked += 1
    assert asked == 2
    assert await counts(state) == (1, 1)


async def test_nobody_is_asked_again_when_the_job_is_closed(state: RedisState) -> None:
    lease = await failed(state)
    await closed(state, lease)
    assert not await state.jobs.ask_again(lease, "a", "again")


async def test_a_model_that_is_being_removed_is_not_found_again(state: RedisState) -> None:
    """Its object is still listed when its record has gone."""
    await state.models.mark_complete()
    assert await state.models.condemn(["m1"]) == ["m1"]
    await state.models.found([Model("m1"), Model("m2")])
    assert [model.model_id for model in await listed(state.models.list())] == ["m2"]


async def test_models_found_in_the_store_are_listed_and_none_is_the_newest(state: RedisState) -> None:
    assert not await state.models.is_complete()
    known = await state.models.register(Model("m1", size=1, sha256="aa", name="known"))
    found = [Model(f"m{n}", size=n, sha256="bb", created_ms=n, name="found") for n in range(1, 121)]
    for _ in range(2):
        await state.models.found(found)
    await state.models.mark_complete()
    assert await state.models.is_complete()
    models = await listed(state.models.list())
    assert [model.model_id for model in models] == [f"m{n}" for n in range(1, 121)]
    assert models[0] == known
    newest = await state.models.newest()
    assert newest is not None
    assert newest.model_id == "m1"
