"""TCP connections that can be cut: a forwarder in front of a server."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

BLOCK = 256 << 10


class Wire:
    """Forwards what comes to `address` to `target`, both `host:port`, until it is cut: then all connections
    break and new ones are refused until it is mended.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self._open: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._listen_port = 0
        self._flowing = asyncio.Event()
        self._flowing.set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listen_port}"

    async def mend(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._listen_port)
            self._listen_port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._open:
            writer.transport.abort()

    def hold(self) -> None:
        """Let nothing through to the target, and break nothing."""
        self._flowing.clear()

    def release(self) -> None:
        self._flowing.set()

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cut()
        if self._serving:
            await asyncio.wait(set(self._serving))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        try:
            await forward(reader, writer, self.target, self._open, self._flowing)
        except OSError:
            pass  # nobody is there
        finally:
            writer.transport.abort()


async def forward(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    target: str,
    open_ends: set[asyncio.StreamWriter],
    flowing: asyncio.Event | None = None,
) -> None:
    """Copy both ways between a connection and a new one to `target` until either ends, then break both.

    Both writers are in `open_ends` meanwhile, for whoever wants to break them. Nothing is sent to the target
    while `flowing` is not set. Raises OSError.
    """
    host, _, port = target.rpartition(":")
    far_reader, far_writer = await asyncio.open_connection(host, int(port))
    ends = {writer, far_writer}
    open_ends |= ends
    ways = [
        asyncio.create_task(_copy(reader, far_writer, flowing)),
        asyncio.create_task(_copy(far_reader, writer)),
    ]
    try:
        # One end that closes ends both: none of the protocols here uses half of a connection.
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for end in ends:
            end.transport.abort()
        open_ends -= ends


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flowing: asyncio.Event | None = None
) -> None:
    while block := await reader.read(BLOCK):
        if flowing is not None:
            await flowing.wait()
        writer.write(block)
        await writer.drain()
