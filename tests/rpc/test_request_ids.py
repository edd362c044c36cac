"""One id in the logs of everything that a call touches."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator

import grpc
import grpc.aio
import pytest
import structlog

from fedcombiner.servicekit import logs
from fedcombiner.servicekit.metrics import Metrics
from fedcombiner.servicekit.rpc import bind, build_server

log = structlog.get_logger()


class Handlers(grpc.GenericRpcHandler):
    """Logs a line in each call, also from a thread and a task of its own."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, request: bytes, context: object) -> bytes:
        log.info("in the handler")
        await asyncio.to_thread(log.info, "in a thread")
        await asyncio.create_task(self._later())
        return b""

    async def _later(self) -> None:
        log.info("in a task")


@pytest.fixture
def told() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    logs.configure("json", "info", "test", stream)
    yield stream
    structlog.reset_defaults()


@pytest.fixture
async def channel(told: io.StringIO) -> AsyncIterator[grpc.aio.Channel]:
    server = build_server(Metrics().rpc)
    server.add_generic_rpc_handlers((Handlers(),))
    port = bind(server, "127.0.0.1", 0)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


async def call(channel: grpc.aio.Channel, *metadata: tuple[str, str]) -> None:
    await channel.unary_unary("/a.Service/Method")(b"", metadata=metadata)


def lines(told: io.StringIO) -> list[dict[str, str]]:
    return [json.loads(line) for line in told.getvalue().splitlines()]


async def test_every_line_of_a_call_has_the_id_that_came_with_it(
    channel: grpc.aio.Channel, told: io.StringIO
) -> None:
    await asyncio.gather(*(call(channel, ("x-request-id", name)) for name in ("one", "two")))
    by_id = {
        name: [line["event"] for line in lines(told) if line["request_id"] == name] for name in ("one", "two")
    }
    assert by_id == {name: ["in the handler", "in a thread", "in a task"] for name in ("one", "two")}


@pytest.mark.parametrize("bad", ["", "a b", "x" * 65, 'quote"'])
async def test_what_is_no_id_stays_out_of_the_log(
    channel: grpc.aio.Channel, told: io.StringIO, bad: str
) -> None:
    await call(channel, ("x-request-id", bad))
    await call(channel)
    log.info("outside of any call")
    assert len(lines(told)) == 7
    assert all("request_id" not in line for line in lines(told))
