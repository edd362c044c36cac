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
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

import structlog

from combiner.aggregation import AGGREGATORS, Aggregator
from combiner.domain.types import ClientRecord, ClientState, Reason
from combiner.ports import Jobs, Lease
from combiner.rounds.capacity import round_bytes
from combiner.rounds.meter import Meter
from combiner.rounds.waiting import steady
from combiner.rounds.workshop import RoundFailed, Workshop, patient
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
)

log = structlog.get_logger()
T = TypeVar("T")

COPY_BLOCK = 4 << 20


class FoldBroken(RoundFailed):
    """The scratch disk failed: nobody knows what is in the aggregate; a new one is folded from the store."""


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
