"""The cost of a call for the server, before and after its token is checked."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from fedcombiner.servicekit import incoming
from fedcombiner.wire.chunks import encode_request
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.pb.fedn_pb2 import IN_PROGRESS
from fedcombiner.wire.registry import OWN_FILES, add_services
from fedcombiner.wire.sizes import MAX_REQUEST_BYTES
from tests.rpc import cost_server
from tests.rpc.modelservice_kit import eventually
from tests.rpc.test_servicekit_rpc import Harness, fine, handler_of, serving

OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
DEADLINE = 60.0
MIB = 1 << 20
# Two million empty sub-messages: 100 MB when decoded.
EMPTY_FIELDS = b"\x12\x00" * (2 * MIB)
HEARTBEAT = fedn_pb2.Heartbeat(sender=fedn_pb2.Client(name="c1")).SerializeToString()


@dataclass
class Served:
    channel: grpc.aio.Channel
    pid: int

    async def call(self, method: str, request: bytes, token: str = "") -> grpc.StatusCode:
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        try:
            await self.channel.unary_unary(method)(request, metadata=metadata, timeout=DEADLINE)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    def peak_mib(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", cost_server.__name__, stdin=pipe, stdout=pipe, env=dict(os.environ)
    )
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE):
        port = int(await process.stdout.readline())
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        yield Served(channel, process.pid)
    await asyncio.wait_for(process.communicate(b""), DEADLINE)


@pytest.mark.parametrize(
    "method",
    ["/grpc.Combiner/SendTelemetryMessage", "/fedn.Combiner/SendAttributeMessage", "/grpc.Control/Start"],
)
async def test_megabytes_from_callers_without_a_token_cost_nothing(served: Served, method: str) -> None:
    assert await served.call("/grpc.Connector/SendHeartbeat", HEARTBEAT, cost_server.CLIENT) == OK
    before = served.peak_mib()
    codes = await asyncio.gather(*(served.call(method, EMPTY_FIELDS) for _ in range(60)))
    expected = UNAUTHENTICATED if "Control" in method else UNAVAILABLE
    assert set(codes) == {expected}
    assert served.peak_mib() - before < 64
    assert await served.call("/grpc.Connector/SendHeartbeat", HEARTBEAT, cost_server.CLIENT) == OK


async def test_megabytes_of_empty_fields_are_never_decoded_for_those_with_a_token_either(
    served: Served,
) -> None:
    assert await served.call("/grpc.Connector/SendHeartbeat", HEARTBEAT, cost_server.CLIENT) == OK
    before = served.peak_mib()
    method = "/grpc.Combiner/SendTelemetryMessage"
    for _ in range(6):
        codes = await asyncio.gather(
            *(served.call(method, EMPTY_FIELDS, cost_server.CLIENT) for _ in range(10))
        )
        assert set(codes) == {UNAVAILABLE}
    # Ten messages as they came, and what the allocator keeps.
    assert served.peak_mib() - before < 300
    assert await served.call("/grpc.Connector/SendHeartbeat", HEARTBEAT, cost_server.CLIENT) == OK


async def test_uploads_that_wait_hold_kilobytes(served: Served) -> None:
    """Nine hundred, of which two are being served, with a mebibyte each to send."""
    upload = served.channel.stream_unary("/grpc.ModelService/Upload")
    metadata = (("authorization", f"Bearer {cost_server.CLIENT}"),)
    written = 0

    async def send(call: Any) -> None:
        nonlocal written
        for _ in range(8):
            await call.write(encode_request("m", IN_PROGRESS, bytes(128 << 10)))
            written += 1

    assert await served.call("/grpc.Connector/SendHeartbeat", HEARTBEAT, cost_server.CLIENT) == OK
    before = served.peak_mib()
    sending = [asyncio.create_task(send(upload(metadata=metadata))) for _ in range(900)]
    seen, idle = -1, 0
    while idle < 20:
        assert await served.call("/grpc.Connector/SendHeartbeat", HEARTBEAT, cost_server.CLIENT) == OK
        seen, idle = written, idle + 1 if written == seen else 0
    assert served.peak_mib() - before < 900 * 0.15
    for task in sending:
        task.cancel()
    await asyncio.wait(sending)


def unfinished(harness: Harness) -> Any:
    """A call of a method that takes one request, which is never sent."""
    return harness.channel.stream_unary("/test.Service/Method")()


async def refused(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await asyncio.wait_for(call, DEADLINE)
    assert error.value.code() is UNAVAILABLE
    return error.value.details() or ""


async def test_a_request_that_does_not_arrive_ends_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "REQUEST_SECONDS", 0.1)
    async with serving(handler_of("unary_unary", fine)) as harness:
        assert "did not arrive" in await refused(unfinished(harness))
        assert harness.value("requests_refused_total", reason="unfinished") == 1
        assert await harness.call("unary_unary") == [b"answer"]


async def test_few_requests_may_be_slow_and_the_oldest_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "SLOW_SECONDS", 0.0)
    async with serving(handler_of("unary_unary", fine)) as harness:
        slow = []
        for opened in range(incoming.MAX_SLOW + 1):
            slow.append(unfinished(harness))
            await eventually(lambda opened=opened: harness.value("in_flight") == opened + 1, "the call")
        assert await harness.call("unary_unary") == [b"answer"]
        assert "did not arrive" in await refused(slow[0])
        assert not any(call.done() for call in slow[1:])
        await slow[1].write(b"late")
        await slow[1].done_writing()
        assert await asyncio.wait_for(slow[1], DEADLINE) == b"answer"


async def test_slow_requests_of_one_address_do_not_push_out_those_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(incoming, "SLOW_SECONDS", 0.0)
    async with (
        serving(handler_of("unary_unary", fine), host="::") as harness,
        grpc.aio.insecure_channel(f"[::1]:{harness.port}") as other,
    ):
        lone = other.stream_unary("/test.Service/Method")()
        await eventually(lambda: harness.value("in_flight") == 1, "the other's call")
        slow = []
        for opened in range(incoming.MAX_SLOW):
            slow.append(unfinished(harness))
            await eventually(lambda opened=opened: harness.value("in_flight") == opened + 2, "the call")
        assert await harness.call("unary_unary") == [b"answer"]
        assert "did not arrive" in await refused(slow[0])
        assert not lone.done()


async def test_young_requests_are_never_given_up_for_others() -> None:
    async with serving(handler_of("unary_unary", fine)) as harness:
        answers = await asyncio.gather(*(harness.call("unary_unary") for _ in range(10 * incoming.MAX_SLOW)))
        assert answers == [[b"answer"]] * len(answers)


def test_every_method_has_a_limit_and_every_limit_a_method() -> None:
    files = (fedn_pb2.DESCRIPTOR, *OWN_FILES)
    methods = {
        service.name: {method.name for method in service.methods}
        for file in files
        for service in file.services_by_name.values()
    }
    assert {service: set(rows) for service, rows in MAX_REQUEST_BYTES.items()} == methods


async def test_a_method_without_a_limit_cannot_be_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(MAX_REQUEST_BYTES["Connector"], "SendHeartbeat")  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="SendHeartbeat"):
        add_services(grpc.aio.server(), {"Connector": object()})
