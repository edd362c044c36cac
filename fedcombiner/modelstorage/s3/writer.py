"""The writing side of the MinIO store: a pipeline of three steps, each a bounded amount ahead of the next."""

import asyncio
import hashlib
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from fedcombiner.modelstorage.s3.bucket import S3Bucket
from fedcombiner.modelstorage.s3.draft import Draft, read_record
from fedcombiner.modelstorage.s3.multipart import part_size
from fedcombiner.modelstorage.store import Buffer, ObjectInfo, ObjectKey, ObjectTooLarge
from fedcombiner.modelstorage.workers import Workers
from fedcombiner.servicekit.errors import ServiceError

_BATCH_BYTES: Final = 2 << 20
# Bounds a batch of tiny chunks, each of which costs an object of some hundred bytes.
_BATCH_CHUNKS: Final = 256
_PARTS_IN_FLIGHT: Final = 2


class _Parts:
    """Cuts what is written into parts, and hashes the whole. Blocking; one call at a time."""

    def __init__(self, size: int) -> None:
        self._part_size = size
        self._hash = hashlib.sha256()
        self.full: deque[bytearray] = deque()
        self.rest = bytearray()

    def append(self, batch: Sequence[memoryview]) -> None:
        for view in batch:
            self._hash.update(view)
            left = view
            while left:
                room = self._part_size - len(self.rest)
                self.rest += left[:room]
                left = left[room:]
                if len(self.rest) == self._part_size:
                    self.full.append(self.rest)
                    self.rest = bytearray()

    def sha256(self) -> str:
        return self._hash.hexdigest()


class MinioWriter:
    """An `ObjectWriter`.

    Holds one batch that is collected, one in a thread, a part that is filled and two on their way: 28 MiB
    with parts of 8 MiB. When all are full, `write` waits. Whatever is cancelled, no data is lost or doubled.
    """

    def __init__(self, bucket: S3Bucket, key: ObjectKey, max_bytes: int, workers: Workers) -> None:
        self._bucket = bucket
        self._key = key
        self._max_bytes = max_bytes
        self._workers = workers
        self._draft = Draft(bucket, key)
        self._parts = _Parts(part_size(max_bytes))
        self._size = 0
        self._sent = 0
        self._waiting: deque[memoryview] = deque()
        self._waiting_bytes = 0
        self._job: asyncio.Future[Any] | None = None
        self._flights: deque[asyncio.Future[None]] = deque()

    async def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        self._size += len(view)
        self._check_size()
        self._waiting.append(view)
        self._waiting_bytes += len(view)
        while self._waiting_bytes >= _BATCH_BYTES or len(self._waiting) >= _BATCH_CHUNKS:
            await self._hand_over()

    async def commit(self) -> ObjectInfo:
        self._check_size()
        while self._waiting:
            await self._hand_over()
        await self._send_full()
        if self._sent and self._parts.rest:
            self._send(self._parts.rest)
        while self._flights:
            await self._land()
        publish = self._job = self._workers.submit(self._publish)
        return await self._workers.result(publish)

    async def close(self) -> None:
        """Wait for the threads and remove what was not committed."""
        for job in (self._job, *self._flights):
            if job:
                with suppress(ServiceError):
                    await self._workers.result(job)
        await self._workers.run(self._draft.discard)

    def _check_size(self) -> None:
        if self._size > self._max_bytes:
            raise ObjectTooLarge(self._key, self._max_bytes)

    async def _hand_over(self) -> None:
        await self._send_full()
        self._job = self._workers.submit(partial(self._parts.append, self._take()))

    def _take(self) -> Sequence[memoryview]:
        batch: list[memoryview] = []
        room = _BATCH_BYTES
        while self._waiting and room and len(batch) < _BATCH_CHUNKS:
            view = self._waiting.popleft()
            batch.append(view[:room])
            if len(view) > room:
                self._waiting.appendleft(view[room:])
            room -= len(batch[-1])
        self._waiting_bytes -= _BATCH_BYTES - room
        return batch

    async def _send_full(self) -> None:
        """After the job, start the parts that it has filled."""
        if self._job:
            await self._workers.result(self._job)
        while self._parts.full:
            while len(self._flights) >= _PARTS_IN_FLIGHT:
                await self._land()
            self._send(self._parts.full.popleft())

    def _send(self, part: bytearray) -> None:
        self._sent += 1
        self._flights.append(self._workers.submit(partial(self._draft.upload.put, self._sent, part)))

    async def _land(self) -> None:
        await self._workers.result(self._flights[0])
        self._flights.popleft()

    def _publish(self) -> ObjectInfo:
        if not self._sent:
            self._draft.put(self._parts.rest)
        elif there := read_record(self._bucket, self._key):
            return there.info
        else:
            self._draft.complete()
        return self._draft.publish(self._size, self._parts.sha256())
