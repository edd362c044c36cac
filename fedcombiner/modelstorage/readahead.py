"""Reading an object in worker threads, one batch of chunks ahead of its consumer."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Final, Protocol

from fedcombiner.modelstorage.workers import Workers
from fedcombiner.servicekit.errors import ServiceError

BATCH_CHUNKS: Final = 2


class Source(Protocol):
    """An object being read. Blocking; one call at a time, in any thread."""

    def read(self) -> Sequence[bytes]:
        """The next few chunks, none at the end."""

    @property
    def exhausted(self) -> bool:
        """Whether the last chunk has been read; the source has closed itself then."""

    def close(self) -> None: ...


async def read_ahead(workers: Workers, source: Source) -> AsyncGenerator[bytes, None]:
    """The chunks of `source`, which is closed at the end, however that comes."""
    async with aclosing(read_batches(workers, source)) as batches:
        async for chunks in batches:
            for chunk in chunks:
                yield chunk


async def read_batches(workers: Workers, source: Source) -> AsyncGenerator[Sequence[bytes], None]:
    """As `read_ahead`, in the batches that are read."""
    ahead = workers.submit(source.read)
    try:
        while chunks := await workers.result(ahead):
            # A small object, whole in the first batch, costs one turn in a thread and no more.
            last = source.exhausted
            if not last:
                ahead = workers.submit(source.read)
            yield chunks
            if last:
                return
    finally:
        if not (ahead.done() and source.exhausted):
            await workers.finish(_close(workers, source, ahead))


async def _close(workers: Workers, source: Source, ahead: asyncio.Future[Sequence[bytes]]) -> None:
    with suppress(ServiceError):
        await workers.result(ahead)
    await workers.run(source.close)
