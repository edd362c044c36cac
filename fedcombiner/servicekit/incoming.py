"""The one request of a call: read after the call was let in, within a time, and decoded within a size.

gRPC by itself reads and decodes a request before any of our code sees the call: megabytes for a caller that
has no token, fifty times its size for a message of empty fields, and without end if it is never finished. So
methods that take one request are served as if they took a stream, of which one message is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from itertools import islice, takewhile
from typing import Any, Final

from google.protobuf.message import DecodeError

from fedcombiner.servicekit.caller import address_of, bound_token
from fedcombiner.servicekit.errors import InvalidArgument, Unavailable
from fedcombiner.servicekit.shares import by_largest_share
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
# At most MAX_SLOW requests may be arriving for longer than this; beyond that, the caller that has most of
# them loses its oldest.
SLOW_SECONDS: Final = 1.0
SWEEP_SECONDS: Final = 0.5
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
        data = await self._arriving.read(context)
        if not isinstance(data, bytes):  # grpc.aio.EOF
            raise InvalidArgument("request", None, "one message")
        request = data if self._read is None else self._read(data)
        check = _check.get()
        if check is not None:
            await check(request)
        return request


class _Arrival:
    """A request that is being read. Who is calling is worked out only when there are too many."""

    __slots__ = ("_context", "_token", "began", "given_up", "task")

    def __init__(self, task: asyncio.Task[Any], began: float, context: Context) -> None:
        self.task = task
        self.began = began
        self.given_up = False
        self._token = bound_token.get()
        self._context = context

    @property
    def share(self) -> str:
        return self._token or address_of(self._context.peer())

    def give_up(self) -> None:
        self.given_up = True
        self.task.cancel()


class _Arriving:
    """The requests that are being read. Each pins as much memory as was sent of it, so few may be slow.

    One timer looks after all of them: one for each would be felt by thousands of heartbeats a second.
    """

    def __init__(self) -> None:
        self._arrivals: dict[_Arrival, None] = {}  # the oldest first
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, context: Context) -> Any:
        """The next message. Raises RequestUnfinished when it takes too long."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        arrival = _Arrival(task, loop.time(), context)
        self._arrivals[arrival] = None
        if self._timer is None:
            self._timer = loop.call_later(SWEEP_SECONDS, self._sweep)
        try:
            return await context.read()
        except asyncio.CancelledError:
            if not arrival.given_up or task.uncancel() > 0:
                raise
            raise RequestUnfinished("the request did not arrive in time; try again") from None
        finally:
            del self._arrivals[arrival]

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        waiting = [one for one in self._arrivals if not one.given_up]
        slow = list(takewhile(lambda one: now - one.began > SLOW_SECONDS, waiting))
        late = list(takewhile(lambda one: now - one.began > REQUEST_SECONDS, slow))
        excess = len(slow) - len(late) - MAX_SLOW
        for arrival in [
            *late,
            *islice(by_largest_share(slow[len(late) :], lambda one: one.share), max(0, excess)),
        ]:
            arrival.give_up()
        self._timer = loop.call_later(SWEEP_SECONDS, self._sweep) if self._arrivals else None


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
