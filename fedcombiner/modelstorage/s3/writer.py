"""The writing side of the MinIO store: a pipeline of three steps, each a bounded amount ahead of the next."""

import asyncio
import hashlib
import mmap
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

_BATCH_BYTES: Final = 1 << 20
# Bounds a batch of tiny chunks, each of which costs an object of some hundred bytes.
_BATCH_CHUNKS: Final = 256
_PARTS_IN_FLIGHT: Final = 2


class _PartBuffer:
    """The memory of one part: given back to the system when dropped, not kept by malloc for a thread."""

    def __init__(self, size: int) -> None:
        self._memory = memoryview(mmap.mmap(-1, size))
        self._used = 0

    @property
    def room(self) -> int:
        return len(self._memory) - self._used

    @property
    def data(self) -> memoryview:
        return self._memory[: self._used]

    def append(self, view: memoryview) -> None:
        self._memory[self._used : self._used + len(view)] = view
        self._used += len(view)

    def clear(self) -> None:
        self._used = 0


class MinioWriter:
    """An `ObjectWriter`.

    Holds one batch that is collected, one in a thread, a part that is filled and two on their way: 26 MiB
    with parts of 8 MiB. When all are full, `write` waits. Whatever is cancelled, no data is lost or doubled.
    """

    def __init__(self, bucket: S3Bucket, key: ObjectKey, max_bytes: int, workers: Workers) -> None:
        self._bucket = bucket
        self._key = key
        self._max_bytes = max_bytes
        self._workers = workers
        self._draft = Draft(bucket, key)
        self._part_size = part_size(max_bytes)
        self._part = _PartBuffer(self._part_size)
        self._spare: list[_PartBuffer] = []
        self._hash = hashlib.sha256()
        self._size = 0
        self._sent = 0
        self._waiting: deque[memoryview] = deque()
        self._waiting_bytes = 0
        self._job: asyncio.Future[Any] | None = None
        self._flights: deque[tuple[asyncio.Future[None], _PartBuffer]] = deque()

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
        if self._sent and self._part.data:
            self._send()
        while self._flights:
            await self._land()
        publish = self._job = self._workers.submit(self._publish)
        return await self._workers.result(publish)

    async def close(self) -> None:
        """Wait for the threads and remove what was not committed."""
        for job in (self._job, *(flight for flight, _ in self._flights)):
            if job:
                with suppress(ServiceError):
                    await self._workers.result(job)
        await self._workers.run(self._draft.discard)

    def _check_size(self) -> None:
        if self._size > self._max_bytes:
            raise ObjectTooLarge(self._key, self._max_bytes)

    async def _hand_over(self) -> None:
        await self._send_full()
        self._job = self._workers.submit(partial(self._append, self._take()))

    def _take(self) -> Sequence[memoryview]:
        """The next batch, which fits into the part."""
        batch: list[memoryview] = []
        room = fits = min(_BATCH_BYTES, self._part.room)
        while self._waiting and room and len(batch) < _BATCH_CHUNKS:
            view = self._waiting.popleft()
            batch.append(view[:room])
            if len(view) > room:
                self._waiting.appendleft(view[room:])
            room -= len(batch[-1])
        self._waiting_bytes -= fits - room
        return batch

    def _append(self, batch: Sequence[memoryview]) -> None:
        for view in batch:
            self._hash.update(view)
            self._part.append(view)

    async def _send_full(self) -> None:
        """Wait for the job, and send the part if that has filled it."""
        if self._job:
            await self._workers.result(self._job)
        if not self._part.room:
            while len(self._flights) >= _PARTS_IN_FLIGHT:
                await self._land()
            self._send()

    def _send(self) -> None:
        part = self._part
        self._sent += 1
        job = self._workers.submit(partial(self._draft.upload.put, self._sent, part.data))
        self._flights.append((job, part))
        self._part = self._spare.pop() if self._spare else _PartBuffer(self._part_size)

    async def _land(self) -> None:
        job, part = self._flights[0]
        await self._workers.result(job)
        self._flights.popleft()
        part.clear()
        self._spare.append(part)

    def _publish(self) -> ObjectInfo:
        if not self._sent:
            self._draft.put(self._part.data)
        elif there := read_record(self._bucket, self._key):
            return there.info
        else:
            self._draft.complete()
        return self._draft.publish(self._size, self._hash.hexdigest())
