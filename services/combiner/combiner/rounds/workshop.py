"""Shared by all rounds of a process: threads, memory and scratch, and patience with the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from combiner.rounds.capacity import Capacity, Room
from fedcombiner.modelstorage.store import STORE_AWAY
from fedcombiner.servicekit.backoff import Backoff, retry

T = TypeVar("T")

STORE_PATIENCE_S = 600.0
STORE_BACKOFF = Backoff(initial=0.1, maximum=5.0)


class RoundFailed(Exception):
    """The round cannot go on; the text is the job's reason."""


async def patient(step: Callable[[], Awaitable[T]]) -> T:
    """One step of the object store, tried again while the store is away.

    RoundFailed when that lasts `STORE_PATIENCE_S`: every job ends.
    """
    try:
        return await retry(step, on=STORE_AWAY, timeout=STORE_PATIENCE_S, backoff=STORE_BACKOFF)
    except STORE_AWAY as error:
        raise RoundFailed(f"the object store was away for {STORE_PATIENCE_S:.0f} s: {error}") from error


class Workshop:
    """The threads in which updates are checked and folded, and the memory for sums, shared by all rounds of a
    process.

    At most `slots` updates are under way at once; the others wait in the store, which bounds scratch space
    and memory. `capacity`: measured now if it is not given.
    """

    def __init__(self, scratch: Path, slots: int = 2, capacity: Capacity | None = None) -> None:
        self.scratch = scratch
        self.capacity = capacity or Capacity.measured(scratch)
        self.room = Room(self.capacity.memory)
        self.slots = asyncio.Semaphore(slots)
        self._threads = ThreadPoolExecutor(max_workers=slots, thread_name_prefix="fold")

    async def run(self, work: Callable[[], T]) -> T:
        """`work()` in a thread.

        Cancelling the caller waits for it: a half-done fold must not go on unseen.
        """
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
