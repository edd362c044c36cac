"""The one request of a call: read after the call was let in, within a time, and decoded within a size.

gRPC by itself reads and decodes a request before any of our code sees the call: megabytes for a caller that
has no token, fifty times its size for a message of empty fields, and without end if it is never finished. So
methods that take one request are served as if they took a stream, of which one message is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Final

from google.protobuf.message import DecodeError

from fedcombiner.servicekit.errors import InvalidArgument, Unavailable
from fedcombiner.servicekit.wrapping import (
    Context,
    Deserializer,
    Handler,
    WrappingInterceptor,
    behaviour_of,
    make_handler,
    write_responses,
)

REQUEST_SECONDS: Final = 30.0
# Of the requests that have been arriving for longer than this, so many may; then the oldest is given up.
SLOW_SECONDS: Final = 1.0
MAX_SLOW: Final = 32

RequestCheck = Callable[[Any], Awaitable[None]]

_check: ContextVar[RequestCheck | None] = ContextVar("check", default=None)


class RequestTooLong(InvalidArgument):
    """A request has more bytes than its method takes."""

    def __init__(self, data: bytes, max_bytes: int) -> None:
        super().__init__("request", data, f"at most {max_bytes} bytes")


class RequestUnfinished(Unavailable):
    """A request did not arrive."""


class SizedReader:
    """A deserializer of requests of at most `max_bytes`; without `read` it returns their bytes.

    Raises:
        RequestTooLong: there are more bytes; they are not decoded.
        InvalidArgument: the bytes are no message of the type.
    """

    __slots__ = ("_max_bytes", "_read")

    def __init__(self, read: Deserializer | None, max_bytes: int) -> None:
        self._read = read
        self._max_bytes = max_bytes

    def __call__(self, data: bytes) -> Any:
        if len(data) > self._max_bytes:
            raise RequestTooLong(data, self._max_bytes)
        return data if self._read is None else self._read(data)


def check_request(check: RequestCheck) -> None:
    """Call `check` with the request of the running call before its handler. What it raises ends the call."""
    _check.set(check)


class RequestReader(WrappingInterceptor):
    """The innermost interceptor: those around it can refuse a call before a byte of its request is read."""

    def __init__(self) -> None:
        super().__init__()
        self._arriving = _Arriving()

    def wrap(self, method: str, handler: Handler) -> Handler:
        read = _decoder(handler.request_deserializer)
        behaviour = behaviour_of(method, handler)
        if handler.request_streaming:
            return make_handler(handler, behaviour, read)
        call = _Call(behaviour, read, self._arriving)
        answer = call.answer_stream if handler.response_streaming else call.answer
        return make_handler(handler, answer, None, request_streaming=True)


class _Call:
    """A method that takes one request, as a method that takes a stream."""

    def __init__(self, behaviour: Any, read: Deserializer | None, arriving: _Arriving) -> None:
        self._behaviour = behaviour
        self._read = read
        self._arriving = arriving

    async def answer(self, _requests: object, context: Context) -> Any:
        return await self._behaviour(await self._receive(context), context)

    async def answer_stream(self, _requests: object, context: Context) -> None:
        await write_responses(self._behaviour, await self._receive(context), context)

    async def _receive(self, context: Context) -> Any:
        async with self._arriving.one():
            data = await context.read()
        if not isinstance(data, bytes):  # grpc.aio.EOF
            raise InvalidArgument("request", None, "one message")
        request = data if self._read is None else self._read(data)
        check = _check.get()
        if check is not None:
            await check(request)
        return request


class _Arriving:
    """The requests that are being read. Each pins as much memory as was sent of it, so few may be slow."""

    def __init__(self) -> None:
        self._limits: dict[asyncio.Timeout, None] = {}  # the oldest first

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """A block that is left with RequestUnfinished when it takes too long."""
        try:
            async with asyncio.timeout(REQUEST_SECONDS) as limit:
                self._make_room()
                self._limits[limit] = None
                try:
                    yield
                finally:
                    del self._limits[limit]
        except TimeoutError:
            raise RequestUnfinished("the request did not arrive in time; try again") from None

    def _make_room(self) -> None:
        if len(self._limits) < MAX_SLOW:
            return
        oldest = next(iter(self._limits))
        now = asyncio.get_running_loop().time()
        ends = oldest.when()
        if ends is not None and now < ends <= now + REQUEST_SECONDS - SLOW_SECONDS:
            oldest.reschedule(now)


def _decoder(read: Deserializer | None) -> Deserializer | None:
    """`read`, which raises InvalidArgument for bytes that cannot be decoded. gRPC would answer UNKNOWN."""
    if read is None:
        return None

    def decode(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            allowed = "a serialized message of the type that the method takes"
            raise InvalidArgument("request", data, allowed) from None

    return decode
