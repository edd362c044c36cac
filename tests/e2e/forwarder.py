"""A way to a server that takes its time, for the kernels that cannot delay packets themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

BLOCK: Final = 256 << 10
# What may be on its way at once: more than the windows of HTTP/2 that are looked at.
IN_FLIGHT: Final = 16 << 20


@asynccontextmanager
async def slow_way(target: str, *, delay: float) -> AsyncIterator[str]:
    """The address of a forwarder to `target`, HOST:PORT; each byte takes `delay` seconds more each way."""
    host, _, port = target.rpartition(":")
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        task.add_done_callback(serving.discard)
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(_carry(reader, far_writer, delay))
                ways.create_task(_carry(far_reader, writer, delay))
        except* OSError:
            pass  # either end is gone
        finally:
            writer.transport.abort()
            far_writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(serving):
            task.cancel()
        if serving:
            await asyncio.wait(serving)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """The queue is bounded by what may be on its way; then nothing more is read, and TCP holds the sender."""
    on_its_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT // BLOCK)

    async def arrive() -> None:
        while True:
            due, block = await on_its_way.get()
            if not block:
                return
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            writer.write(block)
            await writer.drain()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(arrive())
        while True:
            block = await reader.read(BLOCK)
            await on_its_way.put((asyncio.get_running_loop().time() + delay, block))
            if not block:
                return
