"""The watch over Redis's memory: what it removes and logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from combiner.ports import Expired, Memory
from combiner.upkeep.memory import SAID_EVERY_S, MemoryWatch
from structlog.testing import capture_logs


class Filled:
    """`ports.Upkeep` of a Redis that holds 100: each purge takes ten."""

    def __init__(self, used: int, jobs: int = 0) -> None:
        self.used = used
        self.jobs = jobs
        self.removed = 0
        self.refused = 0

    async def memory(self) -> Memory:
        return Memory(self.used, 100, self.removed, self.refused)

    async def purge(self, most: int) -> Expired:
        gone: Sequence[str] = ["j"] if self.jobs else []
        self.jobs -= len(gone)
        self.removed += len(gone)
        self.used -= 10 * len(gone)
        return Expired(gone, [], [])


async def looked(watch: MemoryWatch) -> list[str]:
    """The levels of what a look says."""
    with capture_logs() as said:
        await watch.look()
    return [entry["log_level"] for entry in said]


def watch_over(upkeep: Any) -> MemoryWatch:

    return MemoryWatch(upkeep, clock=lambda: 0.0)


async def test_no_more_is_removed_than_has_to_be() -> None:
    redis = Filled(95, jobs=9)
    await looked(watch_over(redis))
    assert (redis.used, redis.jobs) == (65, 6)


async def test_a_redis_without_a_limit_is_left_alone() -> None:
    redis = Filled(95, jobs=9)
    watch = watch_over(redis)

    async def unlimited() -> Memory:
        return Memory(95, 0, 0, 0)

    redis.memory = unlimited  # type: ignore[method-assign]
    assert await looked(watch) == []
    assert redis.jobs == 9


async def test_a_redis_that_stays_full_is_told_once_and_so_is_that_it_is_not() -> None:
    redis = Filled(95)
    watch = watch_over(redis)
    assert await looked(watch) == ["error"]
    assert watch.status()["takes_new_work"] is False
    assert await looked(watch) == []
    redis.used = 50
    assert await looked(watch) == ["info"]
    assert watch.status()["takes_new_work"] is True


async def test_what_went_is_told_once_an_hour() -> None:
    redis = Filled(50)
    now = 1.0
    watch = MemoryWatch(redis, clock=lambda: now)  # type: ignore[arg-type]
    redis.removed = 5  # before this process began
    assert await looked(watch) == []
    redis.removed, redis.refused = 6, 7
    assert await looked(watch) == ["warning"]
    redis.removed = 8
    assert await looked(watch) == []
    now += SAID_EVERY_S
    assert await looked(watch) == ["warning"]
    now += SAID_EVERY_S
    assert await looked(watch) == []
    assert watch.status()["removed_early"] == 8
