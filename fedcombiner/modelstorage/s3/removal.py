"""Deletion in two steps: the record at once, then the data, which may have to wait for its readers."""

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Final

import structlog

from fedcombiner.modelstorage.s3.bucket import S3Bucket
from fedcombiner.modelstorage.s3.layout import Record, record_name
from fedcombiner.modelstorage.store import STORE_AWAY
from fedcombiner.modelstorage.workers import Workers

log = structlog.get_logger(__name__)

_THREADS: Final = 4
_MAX_UNDER_WAY: Final = 256
# MinIO holds a deletion up until those who read the object are done.
_PATIENCE_S: Final = 60.0
_GRACE_S: Final = 5.0


class Removals:
    """At most 256 deletions are under way; more wait, and with them whoever asked for them."""

    def __init__(self, bucket: S3Bucket) -> None:
        self._bucket = bucket
        self._workers = Workers(_THREADS, "minio-removal")
        self._under_way = asyncio.Semaphore(_MAX_UNDER_WAY)
        self._tasks: set[asyncio.Task[None]] = set()

    async def remove(self, record: Record) -> None:
        """Remove the record, and the data when nobody reads it any more.

        Raises:
            StoreFull, StoreUnavailable: the record may still be there.
        """
        await asyncio.shield(self._start(self._remove(record)))

    async def close(self) -> None:
        """Wait for all deletions under way; from some seconds on, they try once only."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_GRACE_S)
        self._bucket.close()
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._workers.close()

    def _start(self, step: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(step)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _remove(self, record: Record) -> None:
        """Remove the record, and leave the data to a task of its own."""
        await self._under_way.acquire()
        try:
            await self._workers.run(partial(self._bucket.remove, record_name(record.info.key)))
        except BaseException:
            self._under_way.release()
            raise
        self._start(self._remove_data(record.data))

    async def _remove_data(self, name: str) -> None:
        try:
            await self._workers.run(partial(self._bucket.remove, name, patience=_PATIENCE_S))
        except STORE_AWAY as error:
            log.warning("data of a deleted object is left behind", name=name, reason=error.message)
        finally:
            self._under_way.release()
