"""Eight deterministic clients, and what they were promised."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import grpc.aio
import numpy as np

from fedcombiner.client.connection import Connection, one_error
from fedcombiner.client.errors import rpc_errors
from fedcombiner.client.link import Link
from fedcombiner.client.made_up import MadeUp, to_npz
from fedcombiner.client.messages import Messages, Task
from fedcombiner.client.transfer import UPLOAD
from fedcombiner.client.worker import Worker
from fedcombiner.client.workload import Update
from fedcombiner.servicekit.backoff import retry
from fedcombiner.servicekit.errors import ServiceError
from fedcombiner.wire.chunks import CHUNK_SIZE, encode_request
from fedcombiner.wire.pb import fedn_pb2

CLIENTS: Final = 8
NAMES: Final = tuple(f"client-{index}" for index in range(CLIENTS))
# More than one chunk of a transfer and more than one block of the fold.
NOISE: Final = 300_000
SPREAD_S: Final = 0.03
BEAT_S: Final = 60.0


def seed_model() -> bytes:
    return to_npz({"who": np.zeros(CLIENTS, np.float32), "noise": np.zeros(NOISE, np.float32)})


def update_of(index: int, task: Task) -> bytes:
    """A one at the client's place, and numbers whose sum depends on the order unless it is exact."""
    who = np.zeros(CLIENTS, np.float32)
    who[index] = 1
    noise = np.random.default_rng(index).standard_normal(NOISE, np.float32)
    return to_npz({"who": who, "noise": noise})


def examples_of(index: int) -> int:
    return 10 * index + 3


def expected_shares() -> list[float]:
    """Of each client in the aggregate, if each is in it exactly once."""
    total = sum(examples_of(index) for index in range(CLIENTS))
    return [float(np.float32(examples_of(index) / total)) for index in range(CLIENTS)]


def times_in(shares: Sequence[float]) -> list[int]:
    """How often each client's update is in an aggregate with these shares. The client that is in it least
    often is taken to be in it once: an average of all twice is that of all once.
    """
    weights = [share / examples_of(index) for index, share in enumerate(shares)]
    once = min((weight for weight in weights if weight > 0), default=1.0)
    return [round(weight / once) for weight in weights]


class ImpatientWorker(Worker):
    """As FEDn's clients up to 0.16: an upload is tried once, and if that fails so has the task."""

    failed = 0

    async def _upload(self, update_id: str, update: Update, link: Link) -> None:
        assert isinstance(update.source, bytes)
        parts = (
            (fedn_pb2.IN_PROGRESS, update.source[start : start + CHUNK_SIZE])
            for start in range(0, len(update.source), CHUNK_SIZE)
        )
        messages = [encode_request(update_id, status, part) for status, part in (*parts, (fedn_pb2.OK, b""))]
        call: grpc.aio.StreamUnaryCall[bytes, bytes] = link.stream_unary(UPLOAD)(iter(messages))
        try:
            await call
        except grpc.aio.AioRpcError as error:
            self.failed += 1
            raise UploadFailed(error.details()) from None


class UploadFailed(Exception):
    """The task has, too."""


class Client:
    """One client on a connection of its own.

    `confirmed` is what it was told to be received: the ids of its updates by the id of their task.
    """

    def __init__(self, index: int, address: str, worker: type[Worker]) -> None:
        self.name = NAMES[index]
        self.confirmed: dict[str, str] = {}
        self.errors = 0
        self._link = _Watched(address, self)
        self._messages = Messages(self.name, "0.6")
        workload = MadeUp(
            index, update_of, num_examples=examples_of, delay=lambda index, task: index * SPREAD_S
        )
        self.worker = worker(self._messages, workload, self._get_link)

    async def run(self) -> None:
        async with self._link:
            connection = Connection(
                self._link,
                self._messages,
                self.worker.deliver,
                trains=True,
                validates=True,
                heartbeat_interval=1.0,
            )
            async with one_error() as tasks:
                tasks.create_task(self.worker.run())
                tasks.create_task(connection.run())

    async def _get_link(self) -> Link:
        return self._link

    async def beat(self) -> None:
        """One answered heartbeat: what was sent to this client before it has arrived."""

        async def attempt() -> None:
            with rpc_errors():
                await self._link.connector.SendHeartbeat(self._messages.heartbeat, timeout=5)

        await retry(attempt, on=ServiceError, timeout=BEAT_S)


class _Watched(Link):
    """Notes what became of each SendModelUpdate."""

    def __init__(self, address: str, client: Client) -> None:
        super().__init__(address, metadata=(("grpc-server", "gateway"),))
        self._client = client
        self._send = self.combiner.SendModelUpdate
        combiner: Any = self.combiner
        combiner.SendModelUpdate = self._noted

    async def _noted(self, update: fedn_pb2.ModelUpdate, **options: Any) -> fedn_pb2.Response:
        try:
            reply: fedn_pb2.Response = await self._send(update, **options)
        except Exception:
            self._client.errors += 1
            raise
        self._client.confirmed[update.correlation_id] = update.model_update_id
        return reply


class Fleet:
    """All clients, connected to the gateway for the length of an `async with` block."""

    def __init__(self, address: str, worker: type[Worker] = Worker) -> None:
        self.clients = [Client(index, address, worker) for index in range(CLIENTS)]
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def errors(self) -> int:
        """SendModelUpdate calls that ended with an error: each would have ended an old FEDn client."""
        return sum(client.errors for client in self.clients)

    @property
    def failed_uploads(self) -> int:
        """Of impatient clients."""
        workers = (client.worker for client in self.clients)
        return sum(worker.failed for worker in workers if isinstance(worker, ImpatientWorker))

    def confirmed(self) -> Mapping[str, str]:
        """Task id -> update id, of everything that the stack has said it has received."""
        return {task: update for client in self.clients for task, update in client.confirmed.items()}

    async def round_trip(self) -> None:
        """Hear what was sent to the clients before."""
        await asyncio.gather(*(client.beat() for client in self.clients))

    def check(self) -> None:
        """Raise the error of a client that ended: none may."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(client.run(), name=client.name) for client in self.clients]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
