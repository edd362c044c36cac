"""Redis's clock as a process sees it, also when somebody sets it."""

from __future__ import annotations

from typing import Any

import pytest
from combiner.rounds.clock import SharedClock

from tests.clock import Clock


class Redis:
    """Its clock is `ahead` of the local one; an answer takes `answer_s`, half of it on either way."""

    def __init__(self, local: Clock) -> None:
        self.local = local
        self.ahead = 1_000_000.0
        self.answer_s = 0.0

    async def now_ms(self) -> int:
        self.local.now += self.answer_s / 2
        read = round((self.local.now + self.ahead) * 1000)
        self.local.now += self.answer_s / 2
        return read


@pytest.fixture
def redis() -> Redis:
    return Redis(Clock(50.0))


@pytest.fixture
def clock(redis: Redis) -> SharedClock:
    log: Any = redis
    return SharedClock(log, redis.local)


async def test_it_goes_on_by_the_local_clock_between_two_looks(redis: Redis, clock: SharedClock) -> None:
    redis.answer_s = 0.5
    assert await clock.sync() == pytest.approx(1_000_050.5)
    redis.local.now += 7
    assert clock.now() == pytest.approx(1_000_057.5)


async def test_without_a_look_it_has_no_time(clock: SharedClock) -> None:
    with pytest.raises(RuntimeError, match="not synchronised"):
        clock.now()


@pytest.mark.parametrize("step", [3600.0, -3600.0])
async def test_a_step_of_redis_is_followed_and_counted(redis: Redis, clock: SharedClock, step: float) -> None:
    await clock.sync()
    redis.ahead += step
    assert clock.now() == pytest.approx(1_000_050)
    assert await clock.sync() == pytest.approx(1_000_050 + step)
    assert clock.steps == 1
    await clock.sync()
    assert clock.steps == 1


async def test_drift_is_followed_and_is_no_step(redis: Redis, clock: SharedClock) -> None:
    await clock.sync()
    for _ in range(100):
        redis.ahead += 0.01
        await clock.sync()
    assert clock.now() == pytest.approx(1_000_051)
    assert clock.steps == 0


async def test_what_a_slow_answer_may_have_made_changes_nothing(redis: Redis, clock: SharedClock) -> None:
    await clock.sync()
    redis.ahead += 0.9
    redis.answer_s = 2.0
    await clock.sync()
    assert clock.now() == pytest.approx(1_000_052)
    assert clock.steps == 0
