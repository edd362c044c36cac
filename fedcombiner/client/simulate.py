"""Many clients in one process, for demonstrations, tests and measurements of load.

Each is a whole client on the wire (heartbeats, streams, statuses, transfers), but they share connections,
and what they do with a model may be made up (`fedcombiner.client.made_up`).
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from fedcombiner.client.connection import Connection, one_error
from fedcombiner.client.link import Link, host_of, token_metadata
from fedcombiner.client.messages import Messages, Task
from fedcombiner.client.trust import Trust
from fedcombiner.client.worker import Worker
from fedcombiner.client.workload import Fetch, Metrics, Update, Workload

_HEARTBEATS_KEPT: Final = 100_000  # latencies; the oldest go


@dataclass
class FleetStats:
    """What a fleet has seen.

    Attributes:
        trained, validated, failed: tasks by how they went.
        asked_at: event loop time at which the newest task reached each client.
        heartbeat_seconds: how long the newest heartbeats took.
    """

    trained: int = 0
    validated: int = 0
    failed: int = 0
    asked_at: dict[str, float] = field(default_factory=dict)
    heartbeat_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_HEARTBEATS_KEPT))


class SimulatedFleet:
    """`n` clients of one combiner, connected for the length of an `async with` block.

    Args:
        workload: makes what client i does with its tasks, such as `lambda i: MadeUp(i, one_hot(n))`.
        name: of client i, by `str.format`.
        clients_per_connection: how many share a connection; 1 gives each a TCP connection of its own.
        ramp: seconds over which the clients come, evenly spread at random.
        seed: of that randomness.
        trust: TLS, with servers that it holds for; None: plaintext.
    """

    def __init__(
        self,
        n: int,
        address: str,
        *,
        workload: Callable[[int], Workload],
        name: str = "client-{:05d}",
        generation: str = "0.6",
        clients_per_connection: int = 100,
        heartbeat_interval: float = 2.0,
        ramp: float = 0.0,
        trust: Trust | None = None,
        token: str | None = None,
        seed: int = 0,
    ) -> None:
        self.names: Sequence[str] = [name.format(index) for index in range(n)]
        self.stats = FleetStats()
        self._address = address
        self._workload = workload
        self._generation = generation
        self._per_connection = clients_per_connection
        self._interval = heartbeat_interval
        self._ramp = ramp
        self._trust = trust
        self._token = token
        self._rng = random.Random(seed)
        self._stack = AsyncExitStack()
        self._running: asyncio.Task[None] | None = None
        self._unheard: set[str] = set(self.names)
        self._all_heard = asyncio.Event()

    async def __aenter__(self) -> Self:
        links = [await self._stack.enter_async_context(self._link()) for _ in self._link_starts()]
        self._running = asyncio.create_task(self._run(links), name="simulated fleet")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        await self._stack.aclose()
        if self._running is not None and not self._running.cancelled() and exc_val is None:
            self._running.result()

    async def wait_connected(self, timeout: float) -> None:
        """Wait until a heartbeat of each client was answered.

        Raises:
            TimeoutError: some were not after `timeout` seconds; says how many.
            ServiceError: the combiner does not want these clients.
        """
        assert self._running is not None, "enter the fleet first"
        heard = asyncio.ensure_future(self._all_heard.wait())
        try:
            await asyncio.wait({heard, self._running}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            heard.cancel()
        if self._running.done():
            self._running.result()
        if self._unheard:
            raise TimeoutError(f"{len(self._unheard)} of {len(self.names)} clients are not connected")

    def _link_starts(self) -> range:
        return range(0, len(self.names), self._per_connection)

    def _link(self) -> Link:
        metadata = (("grpc-server", host_of(self._address)), *token_metadata(self._token))
        return Link(self._address, metadata=metadata, trust=self._trust)

    async def _run(self, links: Sequence[Link]) -> None:
        async with one_error() as tasks:
            for index, name in enumerate(self.names):
                delay = self._rng.uniform(0.0, self._ramp)
                link = links[index // self._per_connection]
                tasks.create_task(self._be_client(name, link, self._workload(index), delay))

    async def _be_client(self, name: str, link: Link, workload: Workload, delay: float) -> None:
        await asyncio.sleep(delay)
        messages = Messages(name, self._generation)

        async def get_link() -> Link:
            return link

        worker = Worker(messages, _Counted(workload, self.stats), get_link)

        async def deliver(task: Task) -> None:
            self.stats.asked_at[name] = asyncio.get_running_loop().time()
            await worker.deliver(task)

        connection = Connection(
            link,
            messages,
            deliver,
            trains=workload.trains,
            validates=workload.validates,
            heartbeat_interval=self._interval,
            on_heartbeat=lambda seconds: self._heard(name, seconds),
        )
        async with one_error() as tasks:
            tasks.create_task(worker.run())
            tasks.create_task(connection.run())

    def _heard(self, name: str, seconds: float) -> None:
        self.stats.heartbeat_seconds.append(seconds)
        self._unheard.discard(name)
        if not self._unheard:
            self._all_heard.set()


class _Counted:
    """A workload whose tasks are counted."""

    def __init__(self, workload: Workload, stats: FleetStats) -> None:
        self._workload = workload
        self._stats = stats
        self.trains = workload.trains
        self.validates = workload.validates

    async def train(self, task: Task, fetch: Fetch) -> Update:
        with self._failures():
            update = await self._workload.train(task, fetch)
        self._stats.trained += 1
        return update

    async def validate(self, task: Task, fetch: Fetch) -> Metrics:
        with self._failures():
            metrics = await self._workload.validate(task, fetch)
        self._stats.validated += 1
        return metrics

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._stats.failed += 1
            raise
