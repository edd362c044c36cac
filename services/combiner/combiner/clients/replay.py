"""Steps that a back end has to take, kept for as long as it is unavailable."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from combiner.ports import StateUnavailable
from fedcombiner.modelstorage.store import STORE_AWAY
from fedcombiner.servicekit.backoff import Backoff
from fedcombiner.servicekit.fairqueue import Entry, FairQueue

log = structlog.get_logger()

AWAY: Final = (StateUnavailable, *STORE_AWAY)
BACKOFF: Final = Backoff(initial=0.05, maximum=1.0)
CONCURRENCY: Final = 32  # as many connections to Redis as a replica has
OVERHEAD: Final = 1024  # bytes of an entry beside its text, about


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of a replay queue: entries and bytes in all, and entries of one client."""

    entries: int
    size: int
    of_client: int


@dataclass(eq=False, slots=True)
class _Step:
    take: Callable[[], Awaitable[None]]
    dropped: Callable[[], None]
    done: asyncio.Future[None]


class ReplayQueue:
    """Takes steps in the order in which they come, `CONCURRENCY` at a time.

    When a step finds its back end unavailable, it stays queued and all others wait: the oldest tries again,
    alone and with a growing delay, and the rest follow as soon as it goes through.

    A step beyond `of_client` is dropped. So is, while the whole is beyond its bounds, the newest of the
    client that holds the most.
    """

    def __init__(self, name: str, bounds: Bounds) -> None:
        self._name = name
        self._bounds = bounds
        self._steps: FairQueue[_Step] = FairQueue()
        self._under_way: dict[Entry[_Step], asyncio.Task[None]] = {}
        self._width = CONCURRENCY
        self._delays = BACKOFF.delays()
        self._pause: asyncio.TimerHandle | None = None
        self._closed = False
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._steps)

    def put(
        self, client: str, size: int, take: Callable[[], Awaitable[None]], dropped: Callable[[], None]
    ) -> asyncio.Future[None]:
        """Take the step now or later. The future is done when it was taken, or `dropped` was called."""
        done = asyncio.get_running_loop().create_future()
        self._steps.add(client, _Step(take, dropped, done), OVERHEAD + size)
        if self._steps.number_of(client) > self._bounds.of_client:
            self._drop(self._steps.newest_of(client))
        while len(self._steps) > self._bounds.entries or self._steps.size > self._bounds.size:
            self._drop(self._steps.newest_of(self._steps.heaviest()))
        self._go_on()
        return done

    def _drop(self, entry: Entry[_Step]) -> None:
        self._finish(entry)
        self.dropped += 1
        if self.dropped & (self.dropped - 1) == 0:  # 1, 2, 4, ...: a flood is not to fill the log
            log.error(
                "dropped: too many wait for a back end",
                what=self._name,
                client=entry.owner,
                dropped=self.dropped,
            )
        entry.item.dropped()

    def _finish(self, entry: Entry[_Step]) -> None:
        if entry in self._steps:
            self._steps.remove(entry)
        if not entry.item.done.done():
            entry.item.done.set_result(None)

    def _go_on(self) -> None:
        while self._pause is None and not self._closed and len(self._under_way) < self._width:
            # Those under way are among the oldest, so the first that waits is found after a few looks.
            entry = next((entry for entry in self._steps if entry not in self._under_way), None)
            if entry is None:
                return
            task = asyncio.create_task(self._try(entry), name=f"{self._name} of {entry.owner}")
            self._under_way[entry] = task

    async def _try(self, entry: Entry[_Step]) -> None:
        try:
            await entry.item.take()
        except AWAY as error:
            self._wait(error)
        except Exception:
            log.exception("a step failed", what=self._name, client=entry.owner)
            self._finish(entry)
        else:
            self._resume()
            self._finish(entry)
        finally:
            del self._under_way[entry]
            self._go_on()

    def _wait(self, error: Exception) -> None:
        self._width = 1
        if self._pause is None and not self._closed:
            self._pause = asyncio.get_running_loop().call_later(next(self._delays), self._retry)

    def _retry(self) -> None:
        self._pause = None
        self._go_on()

    def _resume(self) -> None:
        if self._width == CONCURRENCY:
            return
        self._width = CONCURRENCY
        self._delays = BACKOFF.delays()
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    async def settle(self, timeout: float) -> None:
        """Wait for what is queued, at most `timeout` seconds."""
        if waiting := [entry.item.done for entry in self._steps]:
            await asyncio.wait(waiting, timeout=timeout)

    async def close(self) -> int:
        """Give up what is queued. Returns how many steps that were."""
        self._closed = True
        if self._pause is not None:
            self._pause.cancel()
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        lost = list(self._steps)
        for entry in lost:
            self._finish(entry)
        return len(lost)
