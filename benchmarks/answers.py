"""The cost of a validation with large answers for Redis, and how long it holds up the event loop.

    python -m benchmarks.answers [--clients 5000] [--bytes 62000] [--metrics 50]

The whole stack runs in this process with an embedded Redis; the clients are another process. Two figures
have a bound, and the exit code is 1 if one is exceeded: the most memory that Redis used, of the answers' own
size (1.3), and the longest single step of the event loop, in CPU time (50 ms), from the first answer until
the operator has all of them. Python's collections of garbage are told apart: how long they take depends on
the number of open streams, not on the answers. So is how late a timer was that was due every 5 ms, which also
counts what other programs on the machine took.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import tempfile
import threading
import time
from asyncio import events
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import redis
from modelstore.settings import ModelstoreSettings

from fedcombiner.client.link import Link
from fedcombiner.client.messages import Messages, Task
from fedcombiner.client.operator import OperatorClient
from fedcombiner.servicekit import logs
from fedcombiner.standalone.app import Standalone, StandaloneSettings
from fedcombiner.standalone.runtime_directory import socket_path
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb

CLIENTS_ON_A_CONNECTION: Final = 50
AT_ONCE: Final = 20
MAX_OF_DATA: Final = 1.3
MAX_STEP_S: Final = 0.05
EVERY_S: Final = 0.005
MIB: Final = 1 << 20


class Steps:
    """The longest step of this process's event loop, while it is watched."""

    def __init__(self) -> None:
        self.cpu_s = 0.0
        self.late_s = 0.0
        self.garbage_s = 0.0  # the longest collection
        self._collected_s = 0.0
        self._collecting_since = 0.0
        self.what = ""

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        run = events.Handle._run
        steps = self

        def timed(handle: Any) -> None:
            begun = time.thread_time() - steps._collected_s
            run(handle)
            if (taken := time.thread_time() - steps._collected_s - begun) > steps.cpu_s:
                steps.cpu_s, steps.what = taken, repr(getattr(handle._callback, "__self__", handle))

        events.Handle._run = timed  # type: ignore[method-assign]
        gc.callbacks.append(self._collecting)
        timer = asyncio.create_task(self._timer())
        try:
            yield
        finally:
            events.Handle._run = run  # type: ignore[method-assign]
            gc.callbacks.remove(self._collecting)
            timer.cancel()

    def _collecting(self, phase: str, info: Mapping[str, int]) -> None:
        if phase == "start":
            self._collecting_since = time.thread_time()
            return
        taken = time.thread_time() - self._collecting_since
        if threading.current_thread() is threading.main_thread():
            self._collected_s += taken
        self.garbage_s = max(self.garbage_s, taken)

    async def _timer(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + EVERY_S
            await asyncio.sleep(EVERY_S)
            self.late_s = max(self.late_s, clock() - due)


def an_answer(size: int, metrics: int) -> dict[str, Any]:
    numbers = {f"metric-{number}": number / 7 for number in range(metrics)}
    return {**numbers, "report": "x" * (size - len(json.dumps({**numbers, "report": ""})))}


class Clients:
    """Clients that answer a validation when they are told to."""

    def __init__(self, links: list[Link], number: int) -> None:
        self._clients = [
            (links[index // CLIENTS_ON_A_CONNECTION], Messages(f"client-{index:05d}", "0.6"))
            for index in range(number)
        ]
        self._streams = [
            link.combiner.ModelValidationRequestStream(messages.subscription)
            for link, messages in self._clients
        ]

    async def beat(self) -> None:
        while True:
            for link, messages in self._clients:
                await link.connector.SendHeartbeat(messages.heartbeat)
            await asyncio.sleep(2.0)

    async def tasks(self) -> list[Task]:
        requests = await asyncio.gather(*(stream.read() for stream in self._streams))
        return [task for task in map(Task.of, requests) if task is not None]  # type: ignore[arg-type]

    async def answer(self, tasks: list[Task], answer: dict[str, Any]) -> None:
        places = asyncio.Semaphore(AT_ONCE)

        async def one(link: Link, messages: Messages, task: Task) -> None:
            async with places:
                await link.combiner.SendModelValidation(messages.validation(task, answer))

        await asyncio.gather(*(one(*client, task) for client, task in zip(self._clients, tasks, strict=True)))


async def clients(address: str, number: int, size: int, metrics: int) -> None:
    """The other process. It says when all were asked, and answers at a line on its standard input."""
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(OperatorClient(address))
        links = [
            await stack.enter_async_context(Link(address)) for _ in range(0, number, CLIENTS_ON_A_CONNECTION)
        ]
        seed = await operator.put_model({"w": np.zeros(8, np.float32)})
        fleet = Clients(links, number)
        heart = asyncio.create_task(fleet.beat())
        stack.callback(heart.cancel)
        config = {
            "task": "validation",
            "model_id": seed.model_id,
            "clients_required": number,
            "clients_requested": number,
            "wait_for_clients": 300,
            "round_timeout": 600,
        }
        job_id = await operator.start_job(config)
        tasks = await fleet.tasks()
        print("asked", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await fleet.answer(tasks, an_answer(size, metrics))
        job = await operator.wait_job(job_id)
        model = await operator.describe_model(seed.model_id)
        assert job.state == pb.SUCCEEDED, job.reason
        assert len(job.answers) == number, (len(job.answers), job.rejected[:1])
        assert len(model.metrics) == metrics
        print("done", flush=True)


async def measure(number: int, size: int, metrics: int) -> bool:
    logs.configure("console", "warning", "bench")
    steps = Steps()
    with tempfile.TemporaryDirectory(prefix="fc-bench-") as directory:
        data = Path(directory)
        models = ModelstoreSettings.load(data=data / "models", scratch=data / "scratch")
        settings = StandaloneSettings(
            data_dir=data, port=0, discovery_port=0, metrics_port=0, modelstore=models
        )
        async with Standalone(settings) as stack:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.answers", "--address", stack.address),
                *("--clients", str(number), "--bytes", str(size), "--metrics", str(metrics)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            assert child.stdin is not None
            assert child.stdout is not None
            with redis.Redis(unix_socket_path=str(socket_path(data / "redis", None))) as raw:
                try:
                    assert await child.stdout.readline() == b"asked\n"
                    before = int(raw.info("memory")["used_memory"])
                    begun = time.monotonic()
                    async with steps.watched():
                        child.stdin.write(b"\n")
                        assert await child.stdout.readline() == b"done\n"
                    seconds = time.monotonic() - begun
                    peak = int(raw.info("memory")["used_memory_peak"]) - before
                finally:
                    if child.returncode is None:
                        child.terminate()
                    await child.wait()
    of_data = peak / (number * size)
    print(
        f"{number} answers of {size} bytes, {metrics} metrics each, in {seconds:.1f} s: Redis's peak is"
        f" {of_data:.2f} of the {number * size / MIB:.0f} MiB; longest step {steps.cpu_s * 1000:.1f} ms of"
        f" CPU (a collection of garbage {steps.garbage_s * 1000:.1f} ms, a timer {steps.late_s * 1000:.1f} ms"
        f" late)\n  the longest: {steps.what[:300]}"
    )
    return of_data <= MAX_OF_DATA and steps.cpu_s <= MAX_STEP_S


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=5_000)
    parser.add_argument("--bytes", type=int, default=62_000)
    parser.add_argument("--metrics", type=int, default=50)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = (arguments.clients, arguments.bytes, arguments.metrics)
    if arguments.address:
        asyncio.run(clients(arguments.address, *shape))
    else:
        sys.exit(not asyncio.run(measure(*shape)))
