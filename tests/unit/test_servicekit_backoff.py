import asyncio
import random
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcombiner.servicekit.backoff import Backoff, retry, wait_for

AT_ONCE = Backoff(initial=1e-6, maximum=1e-6)


class Flaky:
    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise ConnectionError(f"attempt {self.calls}")
        return "done"


@given(seed=st.integers(), initial=st.floats(1e-3, 1), factor=st.floats(1, 10))
def test_delays_are_jittered_within_a_growing_bounded_window(
    seed: int, initial: float, factor: float
) -> None:
    backoff = Backoff(initial=initial, maximum=2.0, factor=factor)
    for index, delay in enumerate(islice(backoff.delays(random.Random(seed)), 30)):
        window = min(initial * factor**index, 2.0)
        assert window / 2 * 0.999 <= delay <= window * 1.001


def test_one_seed_gives_one_sequence() -> None:
    sequences = [list(islice(Backoff().delays(random.Random(7)), 10)) for _ in range(2)]
    assert sequences[0] == sequences[1]
    assert any(later > earlier for earlier, later in pairwise(sequences[0]))


@pytest.mark.parametrize("values", [{"initial": 0}, {"initial": 9.0}, {"factor": 0.5}])
def test_a_backoff_that_never_waits_or_shrinks_cannot_be_made(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="not a back-off"):
        Backoff(**values)


async def test_retry_returns_the_first_success() -> None:
    attempt = Flaky(failures=3)
    assert await retry(attempt, on=ConnectionError, timeout=60, backoff=AT_ONCE) == "done"
    assert attempt.calls == 4


async def test_retry_raises_the_last_error_when_the_time_is_up() -> None:
    attempt = Flaky(failures=10**9)
    with pytest.raises(ConnectionError, match=r"attempt 1$"):
        await retry(attempt, on=ConnectionError, timeout=0, backoff=Backoff())


async def test_retry_passes_other_errors_on_at_once() -> None:
    attempt = Flaky(failures=1)
    with pytest.raises(ConnectionError):
        await retry(attempt, on=KeyError, timeout=None)
    assert attempt.calls == 1


async def test_wait_for_wakes_when_the_condition_becomes_true() -> None:
    condition, arrived = asyncio.Condition(), list[int]()
    waiter = asyncio.create_task(
        wait_for(condition, lambda: len(arrived) == 2 and arrived, timeout=30, what="two arrivals")
    )
    for number in range(2):
        await asyncio.sleep(0)
        async with condition:
            arrived.append(number)
            condition.notify_all()
    assert await waiter == [0, 1]


async def test_wait_for_says_what_it_waited_for() -> None:
    with pytest.raises(TimeoutError, match="for the moon"):
        await wait_for(asyncio.Condition(), lambda: False, timeout=0.01, what="the moon")
