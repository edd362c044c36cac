"""Tasks with an owner, and steps that outlive an outage."""

from __future__ import annotations

import asyncio

import pytest
from combiner.ports import LeaseLost, StateUnavailable
from combiner.rounds.waiting import TaskSet, see_through, steady, woken


async def test_a_step_is_asked_for_until_redis_answers() -> None:
    answers: list[object] = [StateUnavailable("away"), StateUnavailable("away"), 7]

    async def step() -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert await steady(step) == 7


async def test_what_ends_the_work_is_raised_at_once() -> None:
    async def step() -> None:
        raise LeaseLost("job:j1")

    with pytest.raises(LeaseLost):
        await steady(step)


async def test_woken_says_whether_it_was() -> None:
    wake = asyncio.Event()
    assert not await woken(wake, -1)
    assert not await woken(wake, 0.001)
    asyncio.get_running_loop().call_soon(wake.set)
    assert await woken(wake, 60)
    assert await woken(wake, 0)


async def test_leaving_a_task_set_ends_its_tasks() -> None:
    ended: list[str] = []

    async def work(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    async with TaskSet(lambda: None) as tasks:
        for name in ("a", "b"):
            tasks.spawn(work(name), name)
        await asyncio.sleep(0)
    assert sorted(ended) == ["a", "b"]


async def test_the_first_error_is_raised_and_wakes_the_owner() -> None:
    wake = asyncio.Event()

    async def fail() -> None:
        raise LeaseLost("job:j1")

    async def wait() -> None:
        await asyncio.Event().wait()

    async with TaskSet(wake.set) as tasks:
        tasks.check()
        tasks.spawn(wait(), "waits")
        tasks.spawn(fail(), "fails")
        await asyncio.wait_for(wake.wait(), 20)
        with pytest.raises(LeaseLost):
            tasks.check()
        with pytest.raises(LeaseLost):
            await tasks.join()


async def test_join_waits_for_all() -> None:
    done: list[int] = []

    async def work(number: int) -> None:
        for _ in range(number):
            await asyncio.sleep(0)
        done.append(number)

    async with TaskSet(lambda: None) as tasks:
        for number in (3, 1, 2):
            tasks.spawn(work(number), str(number))
        await tasks.join()
        assert sorted(done) == [1, 2, 3]


async def test_a_step_that_is_seen_through_ends_before_its_caller() -> None:
    begun, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def step() -> None:
        begun.set()
        await may_end.wait()
        ended.set()

    caller = asyncio.create_task(see_through(step(), 60))
    await begun.wait()
    caller.cancel()
    await asyncio.sleep(0)
    assert not caller.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()


async def test_a_step_that_takes_too_long_is_cut_off() -> None:
    begun = asyncio.Event()
    cut: list[bool] = []

    async def step() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cut.append(True)

    caller = asyncio.create_task(see_through(step(), 0.001))
    await begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert cut == [True]


async def test_what_a_step_raises_is_raised() -> None:
    async def step() -> None:
        raise LeaseLost("job:j1")

    with pytest.raises(LeaseLost):
        await see_through(step(), 60)
