"""The writing side of the disk store: a pipeline of three steps, each at most one batch ahead of the next."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from fedcombiner.modelstorage.diskfiles import Part
from fedcombiner.modelstorage.store import Buffer, ObjectInfo, ObjectKey, ObjectTooLarge
from fedcombiner.modelstorage.workers import Workers
from fedcombiner.servicekit.errors import ServiceError

_BATCH_BYTES: Final = 2 << 20
# Bounds a batch of tiny chunks, each of which costs an object of some hundred bytes.
_BATCH_CHUNKS: Final = 256
# The disk is kept busy while data still arrives, so that the last fsync finds little left to do.
_SYNC_BYTES: Final = 8 << 20


class DiskWriter:
    """An `ObjectWriter`. One batch is hashed and written in a thread while the next one is collected.

    When the next one is full too, `write` waits. Beside them, one thread at a time brings to the disk what
    was written before. A small object, whole in the first batch, costs one turn in a thread and no more.
    """

    def __init__(self, part: Part, key: ObjectKey, target: Path, max_bytes: int, workers: Workers) -> None:
        self._part = part
        self._key = key
        self._target = target
        self._max_bytes = max_bytes
        self._workers = workers
        self._size = 0
        self._unsynced = 0
        self._batch: list[memoryview] = []
        self._batch_bytes = 0
        self._job: asyncio.Future[Any] | None = None
        self._sync: asyncio.Future[None] | None = None

    async def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        self._size += len(view)
        self._check_size()
        self._batch.append(view)
        self._batch_bytes += len(view)
        full = self._batch_bytes >= _BATCH_BYTES or len(self._batch) >= _BATCH_CHUNKS
        if full or (self._job and self._job.done()):
            await self._hand_over()

    async def commit(self) -> ObjectInfo:
        self._check_size()
        await self._settle(self._job, self._sync)
        publish = partial(self._part.publish, self._take_batch(), self._key, self._target)
        self._job = self._workers.submit(publish)
        return await self._workers.result(self._job)

    async def close(self) -> None:
        """Wait for the threads and remove what was not committed."""
        for job in (self._job, self._sync):
            with suppress(ServiceError):
                await self._settle(job)
        if self._part.is_open:
            await self._workers.run(self._part.discard)

    def _check_size(self) -> None:
        if self._size > self._max_bytes:
            raise ObjectTooLarge(self._key, self._max_bytes)

    async def _settle(self, *jobs: asyncio.Future[Any] | None) -> None:
        for job in jobs:
            if job:
                await self._workers.result(job)

    def _take_batch(self) -> Sequence[memoryview]:
        batch, self._batch = self._batch, []
        self._unsynced += self._batch_bytes
        self._batch_bytes = 0
        return batch

    async def _hand_over(self) -> None:
        await self._settle(self._job)
        await self._sync_behind()
        self._job = self._workers.submit(partial(self._part.append, self._take_batch()))

    async def _sync_behind(self) -> None:
        if self._unsynced < _SYNC_BYTES or (self._sync and not self._sync.done()):
            return
        await self._settle(self._sync)
        self._unsynced = 0
        self._sync = self._workers.submit(self._part.sync)
