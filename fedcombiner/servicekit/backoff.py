"""Waiting between attempts, and waiting for a condition."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Backoff:
    """Exponential back-off with equal jitter, in seconds: each delay is random in [d/2, d], and d grows.

    Half of each delay is kept fixed, so that a peer is never hit again at once; the random half spreads
    the callers that failed together (Brooker, "Exponential Backoff And Jitter", AWS 2015).
    """

    initial: float = 0.1
    maximum: float = 5.0
    factor: float = 2.0

    def __post_init__(self) -> None:
        if not (0 < self.initial <= self.maximum and self.factor >= 1):
            raise ValueError(f"not a back-off: {self}")

    def delays(self, rng: random.Random | None = None) -> Iterator[float]:
        """An endless iterator of delays in seconds."""
        # Not a generator of its own: seeding one costs more than a call that needs no second attempt.
        uniform = rng.uniform if rng else random.uniform
        delay = self.initial
        while True:
            yield uniform(delay / 2, delay)
            delay = min(delay * self.factor, self.maximum)


async def retry(
    attempt: Callable[[], Awaitable[T]],
    *,
    on: type[Exception] | tuple[type[Exception], ...],
    timeout: float | None,
    backoff: Backoff | None = None,
    rng: random.Random | None = None,
) -> T:
    """The result of the first `attempt` that does not raise one of `on`.

    No attempt starts, and no wait goes on, later than `timeout` seconds after the call: then the last
    error is raised. An attempt under way is not cut off; it must have its own limit.
    """
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout
    for delay in (backoff or Backoff()).delays(rng):
        try:
            return await attempt()
        except on:
            if deadline is not None and loop.time() + delay > deadline:
                raise
        await asyncio.sleep(delay)
    raise AssertionError("the delays never end")


async def wait_for(
    condition: asyncio.Condition, predicate: Callable[[], T], *, timeout: float, what: str
) -> T:
    """The first true result of `predicate`, looked at again each time `condition` is notified.

    Raises TimeoutError, saying `what` was waited for, after `timeout` seconds.
    """
    try:
        async with asyncio.timeout(timeout), condition:
            return await condition.wait_for(predicate)
    except TimeoutError:
        raise TimeoutError(f"waited {timeout:g} s for {what}") from None
