"""The model store in a bucket of MinIO, or of any other S3 server. `s3.layout` says where in it an object is.

Requests are made in worker threads, few for each transfer. In memory, a writer holds some parts (`s3.writer`)
and a reader four chunks of 1 MiB.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog

from fedcombiner.modelstorage.readahead import read_ahead, read_batches
from fedcombiner.modelstorage.s3.bucket import PAGE, S3Bucket, S3Location
from fedcombiner.modelstorage.s3.draft import Draft, read_record
from fedcombiner.modelstorage.s3.errors import StoreRefused
from fedcombiner.modelstorage.s3.layout import Record, probe_name, record_key, records_prefix
from fedcombiner.modelstorage.s3.leftovers import orphans
from fedcombiner.modelstorage.s3.removal import Removals
from fedcombiner.modelstorage.s3.source import LocalCopy, Source
from fedcombiner.modelstorage.s3.writer import MinioWriter
from fedcombiner.modelstorage.scratch import ScratchArea
from fedcombiner.modelstorage.store import (
    STORE_AWAY,
    Kind,
    Leftover,
    ObjectDamaged,
    ObjectInfo,
    ObjectKey,
    ObjectNotFound,
    check_size,
)
from fedcombiner.modelstorage.workers import Workers
from fedcombiner.servicekit.errors import ServiceError

log = structlog.get_logger(__name__)

PATIENCE_S: Final = 10.0
_TRANSFER_THREADS: Final = 16
_CALL_THREADS: Final = 8
_LIST_BATCH: Final = 64


class MinioStore:
    """`ModelStore` in the bucket of `location`, which must exist: `combiner storage setup` makes it.

    Several stores, in one process or many, may use one bucket. `scratch` is a directory for local copies of
    objects, which processes may share. Requests are repeated for up to `patience` seconds while the server is
    away.

    Raises:
        OSError, ValueError: the location cannot be one.
    """

    def __init__(self, location: S3Location, scratch: Path, *, patience: float = PATIENCE_S) -> None:
        self._bucket = S3Bucket(location, patience=patience)
        self._probe = probe_name(location.access_key)
        self._scratch = ScratchArea(scratch)
        self._opening = asyncio.Lock()
        self._transfers = Workers(_TRANSFER_THREADS, "minio-transfer")
        # Apart, so that no slow transfer keeps a question from being answered.
        self._calls = Workers(_CALL_THREADS, "minio-call")
        self._removals = Removals(self._bucket)
        self._started = False

    async def start(self) -> None:
        if self._started:
            return
        await self.ping()
        await self._calls.run(partial(self._bucket.check_conditions, self._probe))
        if not self._bucket.conditional:
            log.warning("the object store knows no If-None-Match: of simultaneous writers the last may win")
        self._started = True

    async def close(self) -> None:
        await self._removals.close()
        self._bucket.close()
        await self._transfers.drain()
        await self._calls.run(self._scratch.close)
        self._transfers.close()
        self._calls.close()

    async def head(self, key: ObjectKey) -> ObjectInfo | None:
        record = await self._record(key)
        return record.info if record else None

    @asynccontextmanager
    async def writer(self, key: ObjectKey, *, max_bytes: int) -> AsyncIterator[MinioWriter]:
        writer = MinioWriter(self._bucket, key, max_bytes, self._transfers)
        try:
            yield writer
        finally:
            await self._transfers.finish(_left(key, writer.close()))

    def reader(self, key: ObjectKey, offset: int = 0) -> AsyncGenerator[bytes, None]:
        return read_ahead(self._transfers, Source(self._bucket, key, offset))

    @asynccontextmanager
    async def local_file(self, key: ObjectKey, *, max_bytes: int | None = None) -> AsyncIterator[Path]:
        async with self._opening:
            await self._calls.run(self._scratch.open)
        path = self._scratch.path()
        source = Source(self._bucket, key, 0)
        check_size((await self._calls.run(source.record)).info, key, max_bytes)
        copy = LocalCopy(source, path)
        job = self._transfers.submit(copy.open)
        try:
            await self._transfers.result(job)
            async with aclosing(read_batches(self._transfers, source)) as batches:
                async for chunks in batches:
                    job = self._transfers.submit(partial(copy.append, chunks))
                    await self._transfers.result(job)
            copy.check()
            yield path
        finally:
            await self._transfers.finish(self._ended(job, copy.remove))

    async def copy(self, source: ObjectKey, target: ObjectKey) -> ObjectInfo:
        record = await self._record(source)
        if record is None:
            raise ObjectNotFound(source)
        there = await self.head(target)
        if there:
            return there
        try:
            return await self._copied(record, target)
        except StoreRefused:
            if await self.head(source) is None:
                raise ObjectNotFound(source) from None
            raise

    async def delete(self, key: ObjectKey) -> bool:
        record = await self._record(key)
        if record is None:
            return False
        await self._removals.remove(record)
        return True

    async def list(self, kind: Kind, prefix: str = "") -> AsyncGenerator[ObjectInfo, None]:
        after = ""
        more = True
        while more:
            page = await self._calls.run(partial(self._bucket.page, records_prefix(kind) + prefix, after))
            for start in range(0, len(page), _LIST_BATCH):
                keys = [record_key(kind, entry.name) for entry in page[start : start + _LIST_BATCH]]
                for info in await asyncio.gather(*map(self._listed, keys)):
                    if info:
                        yield info
            more = len(page) == PAGE
            after = page[-1].name if more else ""

    async def _listed(self, key: ObjectKey) -> ObjectInfo | None:
        try:
            return await self.head(key)
        except ObjectDamaged as error:
            log.warning("object is not listed", reason=error.message)
            return None

    async def sweep(
        self, kind: Kind, older_than: timedelta, *, dry_run: bool
    ) -> AsyncGenerator[Leftover, None]:
        found = orphans(self._bucket, older_than, (kind,))
        while entry := await self._calls.run(partial(next, found, None)):
            if not dry_run:
                await self._calls.run(partial(self._bucket.remove, entry.name))
            yield Leftover(entry.name, entry.size)

    async def ping(self) -> None:
        """Writes and reads a small object, once, without patience."""
        await self._calls.run(partial(self._bucket.probe, self._probe))

    async def _record(self, key: ObjectKey) -> Record | None:
        return await self._calls.run(partial(read_record, self._bucket, key))

    async def _copied(self, record: Record, target: ObjectKey) -> ObjectInfo:
        draft = Draft(self._bucket, target)
        job = self._transfers.submit(partial(draft.copy, record))
        try:
            return await self._transfers.result(job)
        finally:
            await self._transfers.finish(_left(target, self._ended(job, draft.discard)))

    async def _ended(self, job: "asyncio.Future[Any]", cleaning: Callable[[], None]) -> None:
        """Clean up after the job, which may still be at work."""
        with suppress(ServiceError):
            await self._transfers.result(job)
        await self._transfers.run(cleaning)


async def _left(key: ObjectKey, cleaning: Coroutine[None, None, None]) -> None:
    try:
        await cleaning
    except STORE_AWAY as error:
        # The bucket's lifecycle rules or `combiner storage sweep` will remove it.
        log.warning("data of an unfinished object is left behind", key=str(key), reason=error.message)
