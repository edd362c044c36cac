"""Sending a package to whoever asks for it, through short outages of the store, and to slow readers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import structlog
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from discovery_mock.catalog import Package, PackageCatalog
from fedcombiner.modelstorage.store import STORE_AWAY
from fedcombiner.servicekit.backoff import Backoff

log = structlog.get_logger(__name__)

_BACKOFF: Final = Backoff(0.2, 3.0)


async def steady(catalog: PackageCatalog, package: Package, patience: float) -> AsyncGenerator[bytes, None]:
    """The bytes of an archive; goes on where it was when the store was away for less than `patience` seconds.

    Raises:
        ObjectNotFound: before the first chunk.
        StoreUnavailable, StoreFull: the store stays away.
    """
    clock = asyncio.get_running_loop().time
    position, deadline, delays = 0, clock() + patience, _BACKOFF.delays()
    while True:
        try:
            async with aclosing(catalog.reader(package, position)) as chunks:
                async for chunk in chunks:
                    yield chunk
                    position += len(chunk)
                    deadline, delays = clock() + patience, _BACKOFF.delays()
            return
        except STORE_AWAY:
            delay = next(delays)
            if clock() + delay > deadline:
                raise
        await asyncio.sleep(delay)


class Download(StreamingResponse):
    """An archive as an attachment. A reader that takes nothing for `idle` seconds is cut off."""

    idle: float

    @classmethod
    async def begin(cls, chunks: AsyncGenerator[bytes, None], package: Package, *, idle: float) -> Download:
        """The response as soon as there is something to send; raises what `chunks` raises before that."""
        first = await anext(chunks, b"")
        headers = {
            "content-length": str(package.size),
            # As Flask writes it, without quotes: clients of FEDn take what comes after the equals sign.
            "content-disposition": f"attachment; filename={package.file_name}",
            "etag": f'"{package.id}"',
        }
        download = cls(_joined(first, chunks), headers=headers, media_type="application/gzip")
        download.idle = idle
        return download

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self.idle):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except (TimeoutError, *STORE_AWAY) as error:
            # Headers are out already: all that is left is to end the connection before its time.
            log.warning("download cut off", reason=str(error) or f"nothing was taken for {self.idle:g} s")


async def _joined(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        yield first
        async for chunk in rest:
            yield chunk
