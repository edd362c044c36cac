"""Deletion in two steps: the record at once, then the data, which may have to wait for its readers."""

import asyncio
from functools import partial
from typing import Final

import structlog

from fedcombiner.modelstorage.s3.bucket import S3Bucket
from fedcombiner.modelstorage.s3.layout import Record, record_name
from fedcombiner.modelstorage.store import STORE_AWAY, StoreFull, StoreUnavailable
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
        gone: asyncio.Future[StoreFull | StoreUnavailable | None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._remove(record, gone))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if error := await asyncio.shield(gone):
            raise error

    async def close(self) -> None:
        """Wait for all deletions under way; from some seconds on, they try once only."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_GRACE_S)
        self._bucket.close()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._workers.close()

    async def _remove(
        self, record: Record, gone: "asyncio.Future[StoreFull | StoreUnavailable | None]"
    ) -> None:
        async with self._under_way:
            try:
                await self._workers.run(partial(self._bucket.remove, record_name(record.info.key)))
            except STORE_AWAY as error:
                gone.set_result(error)
                return
            gone.set_result(None)
            try:
                await self._workers.run(partial(self._bucket.remove, record.data, patience=_PATIENCE_S))
            except STORE_AWAY as error:
                log.warning("data of a deleted object is left behind", name=record.data, reason=error.message)
