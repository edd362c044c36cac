"""From received updates to the aggregate: check, record the judgement, fold.

For each update, in any order:  fetch -> check completely -> journal `accepted` -> fold, or journal
`rejected`. An accepted update whose process died before the fold is folded again from the store by whoever
goes on.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

import structlog

from combiner.aggregation import AGGREGATORS, Aggregator
from combiner.domain.types import ClientRecord, ClientState, Reason
from combiner.ports import Jobs, Lease
from combiner.rounds.capacity import Capacity, Room, round_bytes
from combiner.rounds.meter import Meter
from combiner.rounds.waiting import steady
from combiner.specs import Specs
from fedcombiner.modelstorage.formats import FormatError, ModelSpec
from fedcombiner.modelstorage.formats.npz import CheckedUpdate, check_update
from fedcombiner.modelstorage.store import (
    ModelStore,
    ObjectDamaged,
    ObjectInfo,
    ObjectKey,
    ObjectNotFound,
    ObjectTooLarge,
    StoreFull,
    StoreUnavailable,
)
from fedcombiner.servicekit.backoff import Backoff, retry

log = structlog.get_logger()
T = TypeVar("T")

STORE_PATIENCE_S = 600.0
STORE_BACKOFF = Backoff(initial=0.1, maximum=5.0)
COPY_BLOCK = 4 << 20


class RoundFailed(Exception):
    """The round cannot go on; the text is the job's reason."""


class FoldBroken(RoundFailed):
    """The scratch disk failed: nobody knows what is in the aggregate; a new one is folded from the store."""


async def patient(step: Callable[[], Awaitable[T]]) -> T:
    """One step of the object store, tried again while the store is away.

    RoundFailed when that lasts `STORE_PATIENCE_S`: every job ends.
    """
    try:
        return await retry(
            step, on=(StoreUnavailable, StoreFull), timeout=STORE_PATIENCE_S, backoff=STORE_BACKOFF
        )
    except (StoreUnavailable, StoreFull) as error:
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


class Folder:
    """Folds the updates of one job into one aggregate."""

    def __init__(
        self,
        lease: Lease,
        jobs: Jobs,
        store: ModelStore,
        workshop: Workshop,
        aggregator: Aggregator,
        parent: ModelSpec,
        specs: Specs,
        meter: Meter,
    ) -> None:
        self._lease = lease
        self._jobs = jobs
        self._store = store
        self._workshop = workshop
        self._aggregator = aggregator
        self.parent = parent
        self._specs = specs
        self._meter = meter
        self._folding = asyncio.Lock()
        self.seconds = {"checking": 0.0, "folding": 0.0, "writing": 0.0}

    @classmethod
    async def open(
        cls,
        lease: Lease,
        jobs: Jobs,
        store: ModelStore,
        workshop: Workshop,
        *,
        parent: ObjectKey,
        specs: Specs,
        aggregator: str,
        meter: Meter,
    ) -> Folder:
        """Reads the parent's names, shapes and types.

        Waits while other rounds leave too little memory. RoundFailed if there is no such model, if it is
        damaged or cannot be averaged, or never fits into memory.
        """

        async def spec() -> ModelSpec:
            info = await store.head(parent)
            if info is None:
                raise ObjectNotFound(parent)
            return await specs.of(info)

        try:
            parent_spec = await patient(spec)
        except ObjectNotFound as error:
            raise RoundFailed(f"model_id: {parent.id} is not in the store") from error
        except ObjectDamaged as error:
            raise RoundFailed(f"model_id: {error.message}") from error
        except FormatError as error:
            raise RoundFailed(f"model_id: {parent.id} cannot be averaged: {error}") from error
        if lack := workshop.capacity.lacks_memory(parent_spec):
            raise RoundFailed(f"model_id: {parent.id}: {lack}")
        size = round_bytes(parent_spec)
        if not workshop.room.has(size):
            log.info("waiting for the memory of other rounds", size=size)
        await workshop.room.take(size)
        try:
            made = AGGREGATORS[aggregator](parent_spec, workshop.scratch)
        except BaseException:
            workshop.room.give_back(size)
            raise
        return cls(lease, jobs, store, workshop, made, parent_spec, specs, meter)

    @property
    def updates(self) -> int:
        return self._aggregator.updates

    @property
    def num_examples(self) -> int:
        return self._aggregator.num_examples

    async def judge(self, record: ClientRecord) -> None:
        """Check one received update, record the judgement, fold it if it is good.

        RoundFailed if it cannot be read or folded for a reason of ours, FoldBroken if that is the disk.
        """
        await self._worked_on(record, self._take)

    async def settle(self, accepted: Sequence[ClientRecord]) -> None:
        """Fold the accepted updates again, from the store, as often as the aggregator needs it: before
        `write`.

        RoundFailed or FoldBroken as `judge`.
        """
        while self._aggregator.needs_another_pass:
            log.info("folding again: sums do not fit in scratch at once", updates=len(accepted))
            self._aggregator.begin_pass()
            for record in accepted:
                await self._worked_on(record, self._take_again)
            await self._timed("folding", self._aggregator.end_pass)

    async def _worked_on(self, record: ClientRecord, work: Callable[[ClientRecord], Awaitable[None]]) -> None:
        async with self._workshop.slots:
            try:
                await work(record)
            except FormatError as error:
                await self._reject(record, error.reason, error.detail)
            except ObjectNotFound:
                await self._reject(record, Reason.NOT_UPLOADED, f"no upload named {record.update_id}")
            except ObjectTooLarge as error:
                await self._reject(record, Reason.TOO_LARGE, error.message)
            except ObjectDamaged as error:
                await self._reject(record, Reason.NOT_A_MODEL, error.message)
            except OSError as error:
                raise FoldBroken(f"the update of {record.client} could not be worked on: {error}") from error

    async def _take(self, record: ClientRecord) -> None:
        async with AsyncExitStack() as stack:
            # Only this is tried again: whatever fails once the fold has begun must not fold twice.
            update = await patient(lambda: self._checked(record, stack))
            if record.state is not ClientState.ACCEPTED:
                await steady(lambda: self._jobs.accept(self._lease, record.client, folded=self.updates))
            await self._fold(update, record.num_examples)
        self._meter.accepted()

    async def _take_again(self, record: ClientRecord) -> None:
        async with AsyncExitStack() as stack:
            update = await patient(lambda: self._checked(record, stack))
            await self._timed("folding", lambda: self._aggregator.fold_again(update, record.num_examples))

    async def _checked(self, record: ClientRecord, stack: AsyncExitStack) -> CheckedUpdate:
        """The update, open for as long as the stack."""
        key = ObjectKey("uploads", record.update_id)
        max_bytes = self.parent.max_update_bytes
        path = await stack.enter_async_context(self._store.local_file(key, max_bytes=max_bytes))
        update = await self._timed(
            "checking", lambda: check_update(path, self.parent, self._workshop.scratch)
        )
        stack.callback(update.close)
        return update

    async def _fold(self, update: CheckedUpdate, num_examples: int) -> None:
        async with self._folding:
            await self._timed("folding", lambda: self._aggregator.fold(update, num_examples))

    async def _reject(self, record: ClientRecord, reason: str, detail: str) -> None:
        if record.state is ClientState.ACCEPTED:
            raise RoundFailed(
                f"the accepted update {record.update_id} of {record.client} cannot be read again: {detail}"
            )
        log.info("update rejected", client=record.client, reason=reason, detail=detail)
        await steady(lambda: self._jobs.reject(self._lease, record.client, reason, detail))
        self._meter.rejected(reason)

    async def write(self, target: ObjectKey) -> ObjectInfo:
        """The aggregate as an object of the store. Leaves nothing behind if it fails.

        It is made in scratch first: the archive's headers hold checksums of what follows them, and a store
        that is away for a while must not make us divide again.
        """
        started = time.monotonic()
        path = self._workshop.scratch / f"aggregate-{uuid.uuid4()}"
        try:
            await self._workshop.run(lambda: self._aggregator.write(path))
            info = await patient(lambda: self._store_file(path, target))
        except OSError as error:
            raise FoldBroken(f"the aggregate could not be written: {error}") from error
        finally:
            path.unlink(missing_ok=True)
        self._note("writing", time.monotonic() - started)
        # It has the parent's names, shapes and types, and is most likely the next parent.
        self._specs.know(info, self.parent)
        return info

    async def _store_file(self, path: Path, target: ObjectKey) -> ObjectInfo:
        size = path.stat().st_size
        async with self._store.writer(target, max_bytes=size) as writer:
            with path.open("rb", buffering=0) as source:
                while block := await asyncio.to_thread(source.read, COPY_BLOCK):
                    await writer.write(block)
            return await writer.commit()

    async def _timed(self, part: str, work: Callable[[], T]) -> T:
        started = time.monotonic()
        result = await self._workshop.run(work)
        self._note(part, time.monotonic() - started)
        return result

    def _note(self, part: str, seconds: float) -> None:
        self.seconds[part] += seconds
        self._meter.part(part, seconds)

    def close(self) -> None:
        self._aggregator.close()
        self._workshop.room.give_back(round_bytes(self.parent))
