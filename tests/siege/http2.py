"""A connection that speaks just enough HTTP/2 to misbehave: frames are sent one by one, unchecked.

What the server sends is read and forgotten, but for its windows: a peer that sends more than they allow is
cut off at once, and harms nobody.
"""

from __future__ import annotations

import asyncio
import struct
from collections import defaultdict
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE: Final = 4
CANCEL: Final = struct.pack(">I", 8)
FRAME: Final = 16_384
WINDOW: Final = 65_535


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload) << 8 | kind) + struct.pack(">BI", flags, stream) + payload


def headers_of(path: str, token: str) -> bytes:
    """The header block of a gRPC call, literally, without Huffman's code and without the table."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "siege",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    if token:
        fields["authorization"] = f"Token {token}"
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())


def message_of(content: bytes) -> bytes:
    """A gRPC message in its frame."""
    return b"\0" + struct.pack(">I", len(content)) + content


def _text(text: str) -> bytes:
    raw = text.encode()
    assert len(raw) < 127, f"needs a longer length: {text}"
    return bytes([len(raw)]) + raw


class Raw:
    """One connection. Use as `async with`; `gone` when the server has closed it."""

    def __init__(self, address: str, token: str = "") -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._token = token
        self._next = 1
        self._initial = WINDOW
        self._connection = WINDOW
        self._added: dict[int, int] = defaultdict(int)  # stream -> bytes that it may send, beside the initial
        self._moved = asyncio.Event()
        self.gone = False

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        self._writer.write(PREFACE + frame(SETTINGS, 0, 0))
        self._reading = asyncio.create_task(self._read(), name="read frames")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reading.cancel()
        self._writer.transport.abort()
        await asyncio.wait([self._reading])

    async def open(self, path: str) -> int:
        """Begin a call; returns its stream."""
        stream, self._next = self._next, self._next + 2
        await self._send(frame(HEADERS, END_HEADERS, stream, headers_of(path, self._token)))
        return stream

    async def reset(self, stream: int) -> None:
        await self._send(frame(RST_STREAM, 0, stream, CANCEL))

    async def send(self, stream: int, content: bytes, *, end: bool = False) -> int:
        """As much of it as the windows allow now, at once. Returns how many bytes were sent."""
        room = max(0, min(len(content), self._connection, self._initial + self._added[stream]))
        self._connection -= room
        self._added[stream] -= room
        for start in range(0, room, FRAME):
            part = content[start : min(start + FRAME, room)]
            last = end and start + len(part) == len(content)
            await self._send(frame(DATA, END_STREAM if last else 0, stream, part))
        return room

    async def allow(self, stream: int, number: int) -> None:
        """Let the server send so many bytes more on this stream, and on the connection."""
        added = struct.pack(">I", number)
        await self._send(frame(WINDOW_UPDATE, 0, stream, added) + frame(WINDOW_UPDATE, 0, 0, added))

    async def moved(self, seconds: float) -> None:
        """Until the server has opened a window, or some seconds have passed."""
        self._moved.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._moved.wait()

    async def _send(self, data: bytes) -> None:
        if self.gone:
            raise ConnectionResetError("the server has closed the connection")
        self._writer.write(data)
        await self._writer.drain()

    async def _read(self) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await self._reader.readexactly(9)
                length, kind = int.from_bytes(head[:3]), head[3]
                flags, stream = head[4], int.from_bytes(head[5:]) & 0x7FFF_FFFF
                self._take(kind, flags, stream, await self._reader.readexactly(length))
                if kind == GOAWAY:
                    break
        self.gone = True
        self._moved.set()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                self._initial = value if name == INITIAL_WINDOW_SIZE else self._initial
            self._writer.write(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._writer.write(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            (number,) = struct.unpack(">I", payload)
            if stream:
                self._added[stream] += number
            else:
                self._connection += number
        self._moved.set()
