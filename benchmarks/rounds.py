"""One training round on the standalone stack: its time, the wait after the last update, and its memory.

    python -m benchmarks.rounds --clients 10 --elements 25000000 --format stored --arrival together

The clients are simulated in this process, on the same cores as the stack. `one-by-one`: each client sends its
update when the one before it is folded; `together`: all train for no time at all. They connect over one
heartbeat interval, so that their heartbeats are spread as those of clients on machines of their own are.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import grpc
import numpy as np

from benchmarks.stack import Stack, running_stack
from fedcombiner.client import OperatorClient
from fedcombiner.client.made_up import MadeUp, sent_as_is
from fedcombiner.client.messages import Task
from fedcombiner.client.simulate import SimulatedFleet
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb

HEARTBEAT_INTERVAL = 2.0  # seconds


def make_update(path: Path, elements: int, deflated: bool) -> None:
    rng = np.random.default_rng(7)
    arrays = {f"layer{i}": rng.standard_normal(elements // 10, dtype=np.float32) for i in range(10)}
    buffer = io.BytesIO()
    (np.savez_compressed if deflated else np.savez)(buffer, **arrays)
    path.write_bytes(buffer.getvalue())


async def one_round(stack: Stack, args: argparse.Namespace, update: Path, clients: int) -> dict[str, float]:
    turns = [asyncio.Event() for _ in range(clients + 1)]
    turns[0].set()

    class InTurn(MadeUp):
        async def train(self, task: Task, fetch: object) -> object:  # type: ignore[override]
            await self._pretend(task, fetch)  # type: ignore[arg-type]
            await turns[self.index].wait()
            return await MadeUp(self.index, self.content, downloads=False).train(task, fetch)  # type: ignore[arg-type]

    kind = InTurn if args.arrival == "one-by-one" else MadeUp
    fleet = SimulatedFleet(
        clients,
        stack.address,
        workload=lambda i: kind(i, sent_as_is(update)),
        name=f"n{clients}-{{:04d}}",
        clients_per_connection=1 if clients <= 1000 else 10,
        heartbeat_interval=HEARTBEAT_INTERVAL,
        ramp=HEARTBEAT_INTERVAL,
    )
    async with fleet, OperatorClient(stack.address) as operator:
        await fleet.wait_connected(60)
        model = await operator.put_model(update)
        await asyncio.sleep(1)
        idle = stack.rss()
        stack.reset_peak()
        fleet.stats.heartbeat_seconds.clear()
        began = time.perf_counter()
        job_id = await operator.start_job(
            {
                "task": "training",
                "round_id": "1",
                "model_id": model.model_id,
                "clients_required": clients,
                "clients_requested": clients,
                "round_timeout": 600,
            }
        )
        last, ended, accepted = 0.0, 0.0, 0
        async for event in operator.watch_job(job_id):
            if event.what == "received":
                last = event.at
            if event.what == "accepted":
                accepted += 1
                # accepted is journalled just before the fold: the next client's training covers that
                turns[accepted].set()
            if event.state in (pb.SUCCEEDED, pb.FAILED):
                ended = event.at
                if event.state != pb.SUCCEEDED:
                    raise SystemExit(f"the round failed: {event.reason or event.job.reason}")
        whole = time.perf_counter() - began
        beats = sorted(fleet.stats.heartbeat_seconds) or [0.0]
        return {
            "whole_s": whole,
            "last_to_aggregate_s": ended - last,
            "peak_above_idle_mb": (stack.peak() - idle) / 1e6,
            "bytes_per_element": (stack.peak() - idle) / args.elements,
            "heartbeat_p50_ms": 1e3 * statistics.median(beats),
            "heartbeat_p99_ms": 1e3 * beats[int(0.99 * (len(beats) - 1))],
        }


async def run(args: argparse.Namespace) -> None:
    versions = f"grpcio {grpc.__version__}, numpy {np.__version__}"
    print(f"Python {platform.python_version()}, {versions}, {platform.machine()}")
    print(" ".join(sys.argv))
    with tempfile.TemporaryDirectory(prefix="fc-bench-") as scratch:
        update = Path(scratch) / "update.npz"
        make_update(update, args.elements, args.format == "deflated")
        megabytes = update.stat().st_size / 1e6
        print(f"update: {megabytes:.1f} MB {args.format}, {args.elements} float32, {args.arrival}")
        for clients in args.clients:
            async with running_stack() as stack:
                results = [await one_round(stack, args, update, clients) for _ in range(args.repeat)]
            median = {key: statistics.median(r[key] for r in results) for key in results[0]}
            figures = "  ".join(f"{key} {value:.3f}" for key, value in median.items())
            print(f"{clients:5d} clients  {figures}")


def main() -> None:
    keep_lines = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=keep_lines)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 40])
    parser.add_argument("--elements", type=int, default=5_000_000)
    parser.add_argument("--format", choices=["stored", "deflated"], default="stored")
    parser.add_argument("--arrival", choices=["together", "one-by-one"], default="together")
    parser.add_argument("--repeat", type=int, default=3)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
