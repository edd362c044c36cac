"""Wires that note who calls, and when."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final

from tests.faults.wires import Wire

PREFACE: Final = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
FRAME_HEADER: Final = 9
HEADERS: Final = 1

Owner = Callable[[int], str]
"""The name of the client whose end of a connection has this port."""


class Tap(Wire):
    """Attributes:
    calls: when each client called, in monotonic seconds.
    """

    def __init__(self, target: str, owner: Owner) -> None:
        super().__init__(target)
        self.calls: dict[str, list[float]] = defaultdict(list)
        self._owner = owner

    def note(self, name: str) -> None:
        self.calls[name].append(time.monotonic())

    def fastest(self, name: str, since: float, window: float = 5.0) -> float:
        """Calls a second, in the `window` seconds that had the most of them."""
        times = [at for at in self.calls[name] if at >= since]
        return max((sum(start <= at < start + window for at in times) for start in times), default=0) / window

    def _name(self, writer: asyncio.StreamWriter) -> str:
        return self._owner(writer.get_extra_info("peername")[1])


class HttpTap(Tap):
    """A call is a connection: FEDn's clients make a new one for each request."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.note(self._name(writer))
        await super()._serve(reader, writer)


class GrpcTap(Tap):
    """A call is a HEADERS frame of HTTP/2, without TLS."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = self._name(writer)
        counting: Any = _Calls(reader, lambda: self.note(name))
        await super()._serve(counting, writer)


class _Calls:
    """`StreamReader.read` that looks for calls in what it reads."""

    def __init__(self, reader: asyncio.StreamReader, called: Callable[[], None]) -> None:
        self._reader = reader
        self._called = called
        self._skip = PREFACE
        self._header = b""

    async def read(self, size: int) -> bytes:
        block = await self._reader.read(size)
        rest = memoryview(block)
        while rest:
            if self._skip:
                taken = min(self._skip, len(rest))
                self._skip -= taken
            else:
                taken = min(FRAME_HEADER - len(self._header), len(rest))
                self._header += rest[:taken]
                self._frame()
            rest = rest[taken:]
        return block

    def _frame(self) -> None:
        if len(self._header) < FRAME_HEADER:
            return
        self._skip = int.from_bytes(self._header[:3])
        if self._header[3] == HEADERS:
            self._called()
        self._header = b""
