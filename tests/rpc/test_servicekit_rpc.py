import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from fedcombiner.servicekit.backoff import Backoff, retry
from fedcombiner.servicekit.binding import BindError
from fedcombiner.servicekit.errors import InvalidArgument, NotFound, Unavailable
from fedcombiner.servicekit.metrics import Metrics
from fedcombiner.servicekit.rpc import bind, build_server, generic_only

Context = grpc.aio.ServicerContext[bytes, bytes]
Outcome = Callable[[Context], Awaitable[None]]

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
MAKERS: dict[str, Any] = {kind: getattr(grpc, f"{kind}_rpc_method_handler") for kind in KINDS}


def handler_of(kind: str, outcome: Outcome, *, writes: bool = False) -> Any:
    """A raw bytes handler of this kind that answers b"first" if it streams, and then does `outcome`.

    It reads a stream of requests to its end first: a client of grpc.aio whose call is over before it has said
    its last word takes that for INTERNAL.
    """

    async def read(request: Any) -> None:
        if kind.startswith("stream"):
            async for _ in request:
                pass

    async def answer(request: Any, context: Context) -> bytes:
        await read(request)
        await outcome(context)
        return b"answer"

    async def generate(request: Any, context: Context) -> AsyncIterator[bytes]:
        await read(request)
        yield b"first"
        await outcome(context)

    async def write(request: Any, context: Context) -> None:
        await read(request)
        await context.write(b"first")
        await outcome(context)

    return MAKERS[kind]((write if writes else generate) if kind.endswith("stream") else answer)


class NotYet(AssertionError):
    pass


class Harness:
    def __init__(
        self, channel: grpc.aio.Channel, metrics: Metrics, server: grpc.aio.Server, port: int
    ) -> None:
        self.channel = channel
        self.port = port
        self.metrics = metrics
        self.server = server

    async def call(self, kind: str, request: bytes = b"hello") -> list[bytes]:
        call = getattr(self.channel, kind)("/test.Service/Method")
        response = call(iter([request]) if kind.startswith("stream") else request)
        if kind.endswith("stream"):
            return [message async for message in response]
        return [await response]

    def value(self, name: str, **labels: str) -> float | None:
        labels = {"service": "test.Service", "method": "Method", **labels}
        return self.metrics.registry.get_sample_value(f"fedcombiner_rpc_{name}", labels)

    async def until(self, what: str, predicate: Callable[[], bool]) -> None:
        async def look() -> None:
            if not predicate():
                raise NotYet(what)

        await retry(look, on=NotYet, timeout=20, backoff=Backoff(0.001, 0.05))


@asynccontextmanager
async def serving(handler: Any, host: str = "127.0.0.1", **options: Any) -> AsyncIterator[Harness]:
    metrics = Metrics()
    server = build_server(metrics.rpc, **options)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("test.Service", {"Method": handler})]
    )
    port = bind(server, host, 0)
    await server.start()
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=unlimited) as channel:
        try:
            yield Harness(channel, metrics, server, port)
        finally:
            await server.stop(None)


async def fine(_context: Context) -> None:
    pass


async def missing(_context: Context) -> None:
    raise NotFound("no such model")


async def bug(_context: Context) -> None:
    raise KeyError("secret-token")


async def abort(context: Context) -> None:
    await context.abort(grpc.StatusCode.ALREADY_EXISTS, "by the handler")


async def cancelled_inside(_context: Context) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("outcome", "code", "details"),
    [
        (missing, grpc.StatusCode.NOT_FOUND, "no such model"),
        (bug, grpc.StatusCode.INTERNAL, "internal error"),
        (abort, grpc.StatusCode.ALREADY_EXISTS, "by the handler"),
        (cancelled_inside, grpc.StatusCode.UNAVAILABLE, "the server is shutting down"),
    ],
)
async def test_what_a_handler_raises_becomes_its_status(
    kind: str, writes: bool, outcome: Outcome, code: grpc.StatusCode, details: str
) -> None:
    async with serving(handler_of(kind, outcome, writes=writes)) as harness:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await harness.call(kind)
        assert (error.value.code(), error.value.details()) == (code, details)
        # The status is on its way before it is counted.
        await harness.until("call counted", lambda: harness.value("in_flight") == 0)
        assert harness.value("handled_total", code=code.name) == 1


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_answers_pass_through_and_are_counted(kind: str, writes: bool) -> None:
    async with serving(handler_of(kind, fine, writes=writes)) as harness:
        expected = b"first" if kind.endswith("stream") else b"answer"
        for _ in range(3):
            assert await harness.call(kind) == [expected]
        assert harness.value("started_total") == 3
        assert harness.value("handled_total", code="OK") == 3
        timed = harness.value("duration_seconds_count")
        assert timed == (0 if kind.endswith("stream") else 3)


async def test_a_bug_is_logged_with_its_traceback_and_hidden_from_the_caller(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(handler_of("unary_unary", bug)) as harness:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await harness.call("unary_unary")
    assert "secret-token" not in str(error.value)
    logged = capsys.readouterr().out + caplog.text
    assert "secret-token" in logged
    assert "test.Service/Method" in logged


@pytest.mark.parametrize("kind", KINDS)
async def test_a_bug_is_unavailable_where_callers_cannot_live_with_internal(kind: str) -> None:
    async with serving(handler_of(kind, bug), unavailable_on_bug={"test.Service"}) as harness:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await harness.call(kind)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_value_that_is_not_text_cannot_break_the_status() -> None:
    async def refuse(_context: Context) -> None:
        raise InvalidArgument("id", "\x00ä\n" * 5000, "a name")

    async with serving(handler_of("unary_unary", refuse)) as harness:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await harness.call("unary_unary")
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "a name" in (error.value.details() or "")


@pytest.mark.parametrize("writes", [False, True])
async def test_a_caller_that_goes_away_ends_the_handler_and_is_no_error(
    writes: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cleaned = asyncio.Event()

    async def park(_context: Context) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    async with serving(handler_of("unary_stream", park, writes=writes)) as harness:
        call = harness.channel.unary_stream("/test.Service/Method")(b"")
        assert await call.read() == b"first"
        assert harness.value("in_flight") == 1
        call.cancel()
        async with asyncio.timeout(20):
            await cleaned.wait()
        await harness.until("stream counted", lambda: harness.value("in_flight") == 0)
        assert harness.value("handled_total", code="CANCELLED") == 1
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_generator_is_closed_also_when_the_call_ends_while_it_is_written() -> None:
    closed = asyncio.Event()

    async def flood(_request: Any, _context: Context) -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(1 << 20)
        finally:
            closed.set()

    async with serving(grpc.unary_stream_rpc_method_handler(flood)) as harness:
        call = harness.channel.unary_stream("/test.Service/Method")(b"")
        await call.read()
        call.cancel()
        async with asyncio.timeout(20):
            await closed.wait()


async def test_a_stream_sends_nothing_before_its_first_message() -> None:
    release = asyncio.Event()

    async def late(_request: Any, _context: Context) -> AsyncIterator[bytes]:
        await release.wait()
        yield b"first"

    async with serving(grpc.unary_stream_rpc_method_handler(late)) as harness:
        call = harness.channel.unary_stream("/test.Service/Method")(b"")
        headers = asyncio.ensure_future(call.initial_metadata())
        await harness.until("handler running", lambda: harness.value("in_flight") == 1)
        assert not headers.done()
        release.set()
        await headers
        assert await call.read() == b"first"


async def test_an_unknown_method_is_unimplemented_and_makes_no_metric() -> None:
    async with serving(handler_of("unary_unary", fine)) as harness:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await harness.channel.unary_unary("/test.Service/Nothing")(b"")
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert harness.value("started_total", method="Nothing") is None


async def test_a_chunk_of_4_mib_passes_and_one_of_5_does_not() -> None:
    async with serving(handler_of("stream_unary", fine)) as harness, asyncio.timeout(60):
        assert await harness.call("stream_unary", bytes(4 << 20)) == [b"answer"]
    seen: list[int] = []

    async def sizes(requests: AsyncIterator[bytes], _context: Context) -> bytes:
        async for request in requests:
            seen.append(len(request))
        return b"answer"

    async with serving(grpc.stream_unary_rpc_method_handler(sizes)) as harness, asyncio.timeout(60):
        await harness.call("stream_unary", bytes((4 << 20) + 1000))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await harness.call("stream_unary", bytes(5 << 20))
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert seen == [(4 << 20) + 1000]


async def test_a_taken_port_is_an_error_that_names_the_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = build_server(Metrics().rpc)
        with pytest.raises(BindError, match=rf"^PORT={port}: .*Address already in use$"):
            bind(server, "127.0.0.1", port)


async def test_two_servers_cannot_share_a_port() -> None:
    async with serving(handler_of("unary_unary", fine)):
        first, second = build_server(Metrics().rpc), build_server(Metrics().rpc)
        port = bind(first, "127.0.0.1", 0)
        await first.start()
        with pytest.raises(BindError):
            bind(second, "127.0.0.1", port)
        await first.stop(None)


async def test_a_host_that_is_not_ours_is_an_error_that_says_so() -> None:
    with pytest.raises(BindError, match=r"192\.0\.2\.1"):
        bind(build_server(Metrics().rpc), "192.0.2.1", 0)


async def test_an_interceptor_of_a_service_runs_inside_the_mapping() -> None:
    class Deny(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            handler = await continuation(details)

            async def refuse(_request: Any, _context: Any) -> bytes:
                raise Unavailable("not now")

            return grpc.unary_unary_rpc_method_handler(refuse) if handler else None

    async with serving(handler_of("unary_unary", fine), interceptors=[Deny()]) as harness:
        with pytest.raises(grpc.aio.AioRpcError, match="not now"):
            await harness.call("unary_unary")
        await harness.until("call counted", lambda: harness.value("in_flight") == 0)
        assert harness.value("handled_total", code="UNAVAILABLE") == 1


async def test_generated_code_registers_through_generic_handlers_only() -> None:
    added: list[Any] = []

    class Spy:
        def add_generic_rpc_handlers(self, handlers: Any) -> None:
            added.extend(handlers)

        def add_registered_method_handlers(self, *_args: Any) -> None:
            raise AssertionError("registered by name")

    spy: Any = Spy()
    server = generic_only(spy)
    server.add_generic_rpc_handlers(["handler"])  # type: ignore[list-item]
    server.add_registered_method_handlers("service", {})
    assert added == ["handler"]
