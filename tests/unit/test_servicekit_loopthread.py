"""An event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from fedcombiner.servicekit.loopthread import LoopThread


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    with LoopThread("the loop") as made:
        yield made


async def _thread_name() -> str:
    return threading.current_thread().name


async def _fail() -> None:
    raise ValueError("as told")


def test_work_runs_in_the_thread_and_hands_its_result_or_error_back(loop: LoopThread) -> None:
    assert loop.call(_thread_name()) == "the loop"
    with pytest.raises(ValueError, match="as told"):
        loop.call(_fail())


async def test_a_caller_may_have_a_running_loop_of_its_own(loop: LoopThread) -> None:
    assert loop.call(_thread_name()) == "the loop"


def test_waiting_for_itself_is_refused(loop: LoopThread) -> None:
    async def wait_for_itself() -> None:
        loop.call(_thread_name())

    with pytest.raises(RuntimeError, match="would wait for itself"):
        loop.call(wait_for_itself())


def test_many_threads_may_call_at_once(loop: LoopThread) -> None:
    together = asyncio.Barrier(8)
    results: list[str] = []

    async def meet() -> str:
        async with together:
            return "met"

    threads = [threading.Thread(target=lambda: results.append(loop.call(meet()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == ["met"] * 8


def test_closing_cancels_what_runs_and_tells_its_caller() -> None:
    loop = LoopThread("the loop")
    begun, cancelled = threading.Event(), threading.Event()

    async def endless() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    errors: list[BaseException] = []

    def caller() -> None:
        try:
            loop.call(endless())
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=caller)
    thread.start()
    assert begun.wait(20)
    loop.close()
    thread.join(20)
    assert cancelled.is_set()
    assert str(errors[0]) == "the loop was closed meanwhile"
    loop.close()
    with pytest.raises(RuntimeError, match="the loop is closed"):
        loop.call(_thread_name())
