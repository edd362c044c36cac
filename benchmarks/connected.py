"""Clients that are connected and wait: whether they stay, their heartbeats, and what each costs in memory.

    python -m benchmarks.connected --clients 2000 --minutes 5

The clients are simulated in this process, each on a connection of its own with two streams and a heartbeat
every 2 s. The same clients then connect to a bare `grpc.aio` server with the same options, whose handlers do
nothing; so do callers that send one heartbeat after the other for a few seconds, beside them. The ratios are
what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.stack import running_stack
from fedcombiner.client import OperatorClient
from fedcombiner.client.link import Link
from fedcombiner.client.made_up import MadeUp, one_hot
from fedcombiner.client.messages import Messages
from fedcombiner.client.simulate import SimulatedFleet
from fedcombiner.servicekit.rpc import SERVER_OPTIONS
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.registry import add_services

HEARTBEAT_INTERVAL: Final = 2.0  # seconds
LOOK_EVERY: Final = 10.0  # seconds
IN_FLIGHT: Final = 32


class BareConnector:
    async def SendHeartbeat(self, _request: object, _context: object) -> fedn_pb2.Response:
        return fedn_pb2.Response()


class BareCombiner:
    async def ModelUpdateRequestStream(
        self, _request: object, _context: object
    ) -> AsyncIterator[fedn_pb2.TaskRequest]:
        await asyncio.Event().wait()
        yield fedn_pb2.TaskRequest()

    ModelValidationRequestStream = ModelUpdateRequestStream


async def serve_bare() -> None:
    """Serve until standard input is closed; the port is the only line of standard output."""
    server = grpc.aio.server(options=SERVER_OPTIONS)
    add_services(server, {"Connector": BareConnector(), "Combiner": BareCombiner()})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


@dataclass
class Seen:
    """Of one server: `least` clients were active at any look, None where nobody can be asked."""

    least: int | None
    beats: list[float]
    kib_each: float
    saturated: float  # heartbeats a second


@asynccontextmanager
async def bare_server() -> AsyncIterator[tuple[str, psutil.Process]]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.connected", "--serve-bare"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        port = int(await asyncio.wait_for(child.stdout.readline(), 30))
        yield f"127.0.0.1:{port}", psutil.Process(child.pid)
    finally:
        child.stdin.close()
        await child.wait()


async def heartbeats_a_second(address: str, seconds: float) -> float:
    """What a few callers get answered who send the next one as soon as the last one is answered."""
    async with Link(address) as link:

        async def call(index: int, until: float) -> int:
            heartbeat, answered = Messages(f"eager-{index}", "0.6").heartbeat, 0
            while time.perf_counter() < until:
                await link.connector.SendHeartbeat(heartbeat)
                answered += 1
            return answered

        await call(0, time.perf_counter() + 0.5)
        began = time.perf_counter()
        counts = await asyncio.gather(*(call(i, began + seconds) for i in range(IN_FLIGHT)))
        return sum(counts) / (time.perf_counter() - began)


async def watch(
    address: str, process: psutil.Process, args: argparse.Namespace, minutes: float, who: Any
) -> Seen:
    """`who()`: the names of the active clients, or None."""
    before = process.memory_info().rss
    fleet = SimulatedFleet(
        args.clients,
        address,
        workload=lambda i: MadeUp(i, one_hot(args.clients)),
        clients_per_connection=1,
        heartbeat_interval=HEARTBEAT_INTERVAL,
        ramp=max(HEARTBEAT_INTERVAL, args.clients / 200),
    )
    least: int | None = None
    async with fleet:
        await fleet.wait_connected(120)
        await asyncio.sleep(2 * HEARTBEAT_INTERVAL)
        fleet.stats.heartbeat_seconds.clear()
        end = time.perf_counter() + 60 * minutes
        with Progress(console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task(f"{args.clients} clients", total=60 * minutes)
            while (left := end - time.perf_counter()) > 0:
                await asyncio.sleep(min(LOOK_EVERY, left))
                names = await who()
                if names is not None:
                    here = len(names.intersection(fleet.names))
                    least = here if least is None else min(least, here)
                progress.update(bar, completed=60 * minutes - max(0.0, end - time.perf_counter()))
        beats = sorted(fleet.stats.heartbeat_seconds)
        each = (process.memory_info().rss - before) / args.clients / 1024
    return Seen(least, beats, each, await heartbeats_a_second(address, args.seconds))


async def run(args: argparse.Namespace) -> None:
    console = Console()
    console.print(f"Python {platform.python_version()}, grpcio {grpc.__version__}, {platform.machine()}")
    async with running_stack() as stack, OperatorClient(stack.address) as operator:

        async def who() -> set[str]:
            return {client.client for client in await operator.list_clients()}

        ours = await watch(stack.address, stack.process, args, args.minutes, who)
    async with bare_server() as (address, process):

        async def nobody() -> None:
            return None

        bare = await watch(address, process, args, min(0.5, args.minutes), nobody)
    table = Table(title=f"{args.clients} clients, {args.minutes:g} minutes")
    for column in ("", "stack", "bare grpc.aio", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("least active at a look", str(ours.least), "", "")
    rows = [
        ("heartbeat, median, ms", *(1e3 * statistics.median(seen.beats) for seen in (ours, bare))),
        (
            "heartbeat, p99, ms",
            *(1e3 * seen.beats[int(0.99 * (len(seen.beats) - 1))] for seen in (ours, bare)),
        ),
        ("memory of a client, KiB", ours.kib_each, bare.kib_each),
        ("heartbeats a second, saturated", ours.saturated, bare.saturated),
    ]
    for name, mine, other in rows:
        table.add_row(name, f"{mine:,.1f}", f"{other:,.1f}", f"{mine / other:.2f}")
    console.print(table)


def main() -> None:
    keep_lines = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=keep_lines)
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=5.0, help="of saturation")
    parser.add_argument("--serve-bare", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    asyncio.run(serve_bare() if args.serve_bare else run(args))


if __name__ == "__main__":
    main()
