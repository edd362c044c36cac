"""Tasks with an owner, and steps of the shared state that outlive an outage."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Self, TypeVar

from combiner.ports import StateUnavailable
from fedcombiner.servicekit.backoff import Backoff, retry

T = TypeVar("T")

OUTAGE = Backoff(initial=0.05, maximum=1.0)


async def steady(step: Callable[[], Awaitable[T]]) -> T:
    """The result of one step of the shared state, asked for again while Redis is away, for as long as that
    takes.

    Every step is idempotent, so one whose reply was lost may be repeated. What ends the work (`LeaseLost`,
    `Ended`) is raised.
    """
    return await retry(step, on=StateUnavailable, timeout=None, backoff=OUTAGE)


async def woken(wake: asyncio.Event, seconds: float) -> bool:
    """Whether `wake` was set within `seconds`; if that is 0 or less, whether it is."""
    if seconds <= 0:
        return wake.is_set()
    try:
        async with asyncio.timeout(seconds):
            return await wake.wait()
    except TimeoutError:
        return wake.is_set()


async def see_through(work: Coroutine[object, object, None], patience: float) -> None:
    """Do `work`. If the caller is cancelled it still has `patience` seconds to come to its end."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=patience)
        task.cancel()
        await asyncio.wait([task])
        raise


class TaskSet:
    """Tasks that belong to one piece of work. Leaving the block cancels and awaits what still runs.

    `on_done` is called after each; the first error is raised by `check` and `join`.
    """

    def __init__(self, on_done: Callable[[], None]) -> None:
        self._on_done = on_done
        self._running: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None

    def spawn(self, coroutine: Coroutine[object, object, None], name: str) -> None:
        task = asyncio.create_task(coroutine, name=name)
        self._running.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and self._error is None:
            self._error = task.exception()
        self._on_done()

    def check(self) -> None:
        """Raise the first error of a task that ended."""
        if self._error is not None:
            raise self._error

    async def join(self) -> None:
        """Wait for all of them; raise the first error at once."""
        self.check()
        while self._running:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_EXCEPTION)
            self.check()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._running:
            task.cancel()
        while self._running:
            await asyncio.wait(self._running)
