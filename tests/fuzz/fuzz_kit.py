"""How long to fuzz, what is fuzzed, and what must not become of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import httpx
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks.stack import Stack, running_stack
from fedcombiner.client import OperatorClient
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.registry import NEW_PACKAGE, OLD_PACKAGE, OWN_FILES, OWN_PACKAGE

T = TypeVar("T")

TARGETS = 7
DEADLINE = 20.0
# What stands for a mistake of ours. The last is how one is shown to clients that cannot live with INTERNAL.
BUGS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)
HIDDEN_BUG = "internal error"


def fuzz(strategy: st.SearchStrategy[T], check: Callable[[T], None], examples: int = 25) -> None:
    """Check many values: always the same ones, or for a share of FUZZ_MINUTES new ones all the time."""
    minutes = float(os.environ.get("FUZZ_MINUTES", "0"))

    @settings(
        max_examples=examples,
        derandomize=not minutes,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(strategy)
    def run(value: T) -> None:
        check(value)

    ends = time.monotonic() + 60 * minutes / TARGETS
    run()
    while time.monotonic() < ends:
        run()


@dataclass
class Usage:
    memory: int
    tasks: float
    files: int

    def is_about(self, other: Usage) -> bool:
        """Whether no more is in use than by `other`, but for caches and chance."""
        memory = other.memory + max(other.memory // 4, 32 << 20)
        return self.memory <= memory and self.tasks <= other.tasks + 10 and self.files <= other.files + 10


@dataclass
class Target:
    """A running stack, its port, and ids that exist in it."""

    stack: Stack
    channel: grpc.Channel
    model_id: str
    session_id: str
    job_id: str

    def call(self, method: str, request: bytes, *, streamed: bool) -> None:
        """AssertionError if the answer is a bug's."""
        try:
            if streamed:
                for _ in self.channel.unary_stream(method)(request, timeout=0.05):
                    pass
            else:
                self.channel.unary_unary(method)(request, timeout=DEADLINE)
        except grpc.RpcError as error:
            refuse_bugs(error, f"{method} of {request[:100].hex()}")

    def upload(self, messages: list[bytes]) -> None:
        try:
            self.channel.stream_unary("/grpc.ModelService/Upload")(iter(messages), timeout=DEADLINE)
        except grpc.RpcError as error:
            refuse_bugs(error, "Upload")

    def is_well(self) -> None:
        """Answers, and gives up the jobs that were started by chance."""
        assert self.stack.process.is_running(), "the process has ended"
        for method, request in (("Control/Stop", b""), ("Connector/SendHeartbeat", b"\x0a\x04\x12\x02c1")):
            self.channel.unary_unary(f"/grpc.{method}")(request, timeout=DEADLINE)

    def usage(self) -> Usage:
        metrics = httpx.get(f"{self.stack.metrics}/metrics", timeout=DEADLINE).text.splitlines()
        tasks = next(line for line in metrics if line.startswith("fedcombiner_event_loop_tasks "))
        process = self.stack.process
        return Usage(process.memory_info().rss, float(tasks.split()[1]), process.num_fds())

    def settled(self, before: Usage) -> Usage:
        """The usage as soon as it is about what it was before, or after the deadline."""
        ends = time.monotonic() + DEADLINE
        while not (usage := self.usage()).is_about(before) and time.monotonic() < ends:
            time.sleep(0.1)
        return usage


def refuse_bugs(error: Any, what: str) -> None:
    is_bug = error.code() in BUGS or HIDDEN_BUG in (error.details() or "")
    assert not is_bug, f"{what}: {error.code()} {error.details()}"


@contextlib.contextmanager
def target() -> Iterator[Target]:
    """A fresh stack with a model, a session and a job. The client c1 is known, and does nothing."""
    with asyncio.Runner() as runner:
        context = running_stack()
        stack = runner.run(context.__aenter__())
        try:
            with grpc.insecure_channel(stack.address) as channel:
                model_id, session_id, job_id = runner.run(furnish(stack.address))
                yield Target(stack, channel, model_id, session_id, job_id)
        finally:
            runner.run(context.__aexit__(None, None, None))


async def furnish(address: str) -> tuple[str, str, str]:
    async with OperatorClient(address) as operator:
        model = await operator.put_model({"w": np.zeros(8, np.float32)})
        config = {"task": "training", "model_id": model.model_id, "round_id": "1", "wait_for_clients": 60}
        job_id = await operator.start_job(config)
        session = await operator.start_session({"rounds": 1}, model_id=model.model_id)
        return model.model_id, session.session_id, job_id


SERVED = [(fedn_pb2.DESCRIPTOR, (OLD_PACKAGE, NEW_PACKAGE)), *((file, (OWN_PACKAGE,)) for file in OWN_FILES)]
METHODS = {
    f"/{package}.{service.name}/{method.name}": method
    for file, packages in SERVED
    for service in file.services_by_name.values()
    for method in service.methods
    for package in packages
}
