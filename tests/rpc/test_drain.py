"""SIGTERM with a call under way, at each service as a process of its own."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import grpc.aio
import httpx
import pytest

from fedcombiner.wire.chunks import encode_request
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.pb.fedn_pb2 import IN_PROGRESS, OK
from tests.contract.state_kit import Server
from tests.faults.processes import Program, free_address
from tests.rpc.combiner_kit import DEADLINE, eventually

CALL_S: Final = 3.0
DRAIN_S: Final = 5.0
# Soft, far below what is allowed.
FEW_FILES: Final = 256

Start = Callable[..., Any]

MAINS: Final = {
    "combiner": ["-m", "combiner"],
    "modelstore": ["-m", "modelstore"],
    "discovery": ["-m", "discovery_mock"],
    "standalone": ["-c", "from fedcombiner.cli.main import main; main()", "serve"],
}


class Process(Program):
    """A service with free ports."""

    def __init__(self, name: str, directory: Path, redis_url: str, drain_seconds: float) -> None:
        self.address, self.operations, self.discovery = (free_address() for _ in range(3))
        if name == "discovery":
            self.discovery = self.address
        ports = {"PORT": self.address, "METRICS_PORT": self.operations, "DISCOVERY_PORT": self.discovery}
        numbers = {key: value.rpartition(":")[2] for key, value in ports.items()}
        env = {
            "HOST": "127.0.0.1",
            "METRICS_HOST": "127.0.0.1",
            "DATA": str(directory / "data"),
            "SCRATCH": str(directory / "scratch"),
            "REDIS_URL": redis_url,
            "DRAIN_SECONDS": str(drain_seconds),
            **numbers,
        }
        words = [*MAINS[name]]
        if name == "standalone":
            for key in ports:
                words += [f"--{key.lower().replace('_', '-')}", numbers[key]]
        argv = ["/bin/sh", "-c", f'ulimit -Sn {FEW_FILES}; exec "$@"', "sh", sys.executable, *words]
        super().__init__(name, argv, directory, f"http://{self.operations}/readyz", env)

    async def metric(self, line: str) -> float:
        """The value of the metric with this name and labels."""
        async with httpx.AsyncClient(trust_env=False) as http:
            text = (await http.get(f"http://{self.operations}/metrics")).text
        values = [row.rpartition(" ")[2] for row in text.splitlines() if row.startswith(f"{line} ")]
        return float(values[0]) if values else 0.0

    async def has_call(self, service: str, method: str) -> None:
        """Wait until one is under way."""
        line = f'fedcombiner_rpc_in_flight{{method="{method}",service="{service}"}}'

        async def under_way() -> bool:
            return await self.metric(line) == 1

        await eventually(under_way, f"a call of {method}")

    async def has_left(self) -> None:
        """Wait until it has given the gateway time to notice that it stops."""

        async def left() -> bool:
            return '"component": "left the gateway"' in self.log.read_text()

        await eventually(left, f"{self.name} to leave the gateway")


@pytest.fixture
async def start(server: Server, tmp_path: Path) -> AsyncIterator[Start]:
    """`await start(name)`: the service as a process, ready."""
    processes: list[Process] = []

    async def start(name: str, drain_seconds: float = DRAIN_S) -> Process:
        process = Process(name, tmp_path, server.url, drain_seconds)
        processes.append(process)
        await process.start()
        await process.ready()
        return process

    yield start
    for process in processes:
        await process.close()


async def heartbeat(address: str, go_on: asyncio.Event) -> fedn_pb2.Response:
    """One whose request comes as soon as it may."""

    async def request() -> AsyncIterator[bytes]:
        await go_on.wait()
        yield fedn_pb2.Heartbeat(sender=fedn_pb2.Client(name="c0")).SerializeToString()

    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_unary("/grpc.Connector/SendHeartbeat")(request(), timeout=DEADLINE)
        return fedn_pb2.Response.FromString(await call)


async def upload(address: str, go_on: asyncio.Event) -> fedn_pb2.ModelResponse:
    async def request() -> AsyncIterator[bytes]:
        yield encode_request("m1", IN_PROGRESS, b"12345")
        await go_on.wait()
        yield encode_request("m1", OK)

    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_unary("/grpc.ModelService/Upload")(request(), timeout=DEADLINE)
        return fedn_pb2.ModelResponse.FromString(await call)


@pytest.mark.parametrize("name", ["combiner", "standalone"])
async def test_a_unary_call_of_three_seconds_is_answered(start: Start, name: str) -> None:
    process = await start(name)
    go_on = asyncio.Event()
    call = asyncio.create_task(heartbeat(process.address, go_on))
    await process.has_call("grpc.Connector", "SendHeartbeat")
    await _stop_meanwhile(process)
    go_on.set()
    assert (await call).response == "Heartbeat received"
    assert await process.ended() == 0


@pytest.mark.parametrize("name", ["modelstore", "standalone"])
async def test_an_upload_of_three_seconds_is_received(start: Start, name: str) -> None:
    process = await start(name)
    go_on = asyncio.Event()
    call = asyncio.create_task(upload(process.address, go_on))
    await process.has_call("grpc.ModelService", "Upload")
    await _stop_meanwhile(process)
    go_on.set()
    assert (await call).status == OK
    assert await process.ended() == 0


@pytest.mark.parametrize("name", ["discovery", "standalone"])
async def test_an_http_request_of_three_seconds_is_answered(start: Start, name: str) -> None:
    process = await start(name)
    host, _, port = process.discovery.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = b'{"client_id": "c0"}'
    head = f"POST /add_client HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode())
    assert b" 100 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)
    await _stop_meanwhile(process)
    writer.write(body)
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)
    assert answer.startswith(b"HTTP/1.1 203 "), answer
    writer.close()
    assert await process.ended() == 0


async def test_a_call_that_takes_longer_ends_with_unavailable(start: Start) -> None:
    process = await start("modelstore", 0.5)
    call = asyncio.create_task(upload(process.address, asyncio.Event()))
    await process.has_call("grpc.ModelService", "Upload")
    process.signal(signal.SIGTERM)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    assert error.value.details() == "the server is shutting down"
    assert await process.ended() == 0


async def test_streams_of_clients_do_not_hold_the_end_up(start: Start) -> None:
    """With a whole hour for calls under way it is over at once."""
    process = await start("combiner", 3600)
    async with grpc.aio.insecure_channel(process.address) as channel:
        request = fedn_pb2.ClientAvailableMessage(sender=fedn_pb2.Client(name="c0"))
        call = channel.unary_stream("/grpc.Combiner/ModelUpdateRequestStream")(request.SerializeToString())
        await process.has_call("grpc.Combiner", "ModelUpdateRequestStream")
        process.signal(signal.SIGTERM)
        assert await asyncio.wait_for(call.code(), DEADLINE) == grpc.StatusCode.UNAVAILABLE
        assert await asyncio.wait_for(process.ended(), DEADLINE) == 0


@pytest.mark.parametrize("name", MAINS)
async def test_the_limit_of_open_files_is_raised(start: Start, name: str) -> None:
    process = await start(name)
    rows = Path(f"/proc/{process.pid}/limits").read_text().splitlines()
    [soft, hard] = next(row.split()[3:5] for row in rows if row.startswith("Max open files"))
    assert soft == hard != str(FEW_FILES)
    assert "limit of open files raised" in process.log.read_text()


async def _stop_meanwhile(process: Process) -> None:
    """SIGTERM, and three seconds with the call under way."""
    process.signal(signal.SIGTERM)
    await process.has_left()
    await asyncio.sleep(CALL_S)
