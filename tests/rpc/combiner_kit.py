"""Combiners in the test's loop, on a real Redis and a disk store, and clients that do as they are told."""

from __future__ import annotations

import asyncio
import inspect
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import numpy as np
from combiner.adapters.limits import Limits
from combiner.adapters.state import RedisState
from combiner.app import CombinerApp, compose
from combiner.domain.leases import DEFAULT_WINDOWS, Windows
from combiner.ports import Shared
from combiner.settings import CombinerSettings, replica_name

from fedcombiner.access.policy import decide
from fedcombiner.access.setup import AccessControl
from fedcombiner.client.link import Link
from fedcombiner.client.made_up import to_npz
from fedcombiner.client.messages import Messages, Task, Timings
from fedcombiner.client.operator import OperatorClient
from fedcombiner.client.transfer import download_bytes, upload
from fedcombiner.modelstorage.disk import DiskStore
from fedcombiner.modelstorage.diskwriter import DiskWriter
from fedcombiner.modelstorage.limits import TransferLimits
from fedcombiner.modelstorage.servicer import ModelServiceServicer
from fedcombiner.modelstorage.store import ObjectInfo, ObjectKey, StoreUnavailable
from fedcombiner.servicekit.lifecycle import Stop
from fedcombiner.servicekit.service import Action, Service
from fedcombiner.version import __version__
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb

DEADLINE = 20.0
WIDTH = 8  # of the model: client i answers with a one at i
TRAINING_STREAM = "ModelUpdateRequestStream"
VALIDATION_STREAM = "ModelValidationRequestStream"
# Windows in which a silent replica or client is found out within a second.
SHORT = Windows(lease=0.9, client=1.2)


async def eventually(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """For what nobody tells us of: looks again and again, until the deadline."""

    async def hold() -> None:
        while not await condition():
            await asyncio.sleep(0.005)

    try:
        await asyncio.wait_for(hold(), DEADLINE)
    except TimeoutError:
        raise AssertionError(f"waited {DEADLINE:g} s for {what}") from None


class Stack:
    """One Redis prefix and one model store, and any number of combiners on them."""

    def __init__(self, url: str, prefix: str, root: Path) -> None:
        self._url = url
        self._prefix = prefix
        self._root = root
        self._replicas: list[Replica] = []

    async def combiner(
        self,
        *,
        windows: Windows = DEFAULT_WINDOWS,
        gate: Gate | None = None,
        limits: Mapping[str, int] | None = None,
        **settings: Any,
    ) -> Replica:
        """One more combiner, ready. The gate stands between it and the shared state."""
        bounds = Limits(**{"client_window_ms": round(windows.client * 1000), **(limits or {})})
        state = RedisState(self._url, prefix=self._prefix, limits=bounds, log_block_s=0.5)
        store = StoreWithOutages(self._root / "models")
        local = {"host": "127.0.0.1", "port": 0, "metrics_host": "127.0.0.1", "metrics_port": 0}
        files = {"data": self._root / "models", "scratch": self._root / "scratch"}
        chosen = CombinerSettings(**{**local, **files, "drain_seconds": 0.5, **settings})
        replica = Replica(chosen, state, gate or Gate(), store, windows)
        await replica.start()
        self._replicas.append(replica)
        return replica

    async def close(self) -> None:
        for replica in reversed(self._replicas):
            await replica.stop()


class MortalService(Service[AccessControl]):
    """A service that can also end as by SIGKILL."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._killed = False

    def on_drain(self, name: str, action: Action) -> None:
        super().on_drain(name, partial(self._unless_killed, action))

    def before_close(self, name: str, action: Action) -> None:
        super().before_close(name, partial(self._unless_killed, action))

    async def kill(self) -> None:
        self._killed = True
        assert self._server is not None
        await self._server.stop(None)
        await self.__aexit__(None, None, None)

    async def _unless_killed(self, action: Action) -> None:
        if not self._killed:
            await action()


class Replica:
    """One combiner with its own connections, and an operator at it."""

    def __init__(
        self,
        settings: CombinerSettings,
        state: RedisState,
        gate: Gate,
        store: StoreWithOutages,
        windows: Windows,
    ) -> None:
        self.state = state
        self.store = store
        self._transfers = TransferLimits(max_bytes=settings.max_model_bytes)
        self._gate = gate
        self.stopping = Stop()
        self.expects_failure = False
        policy = decide(settings, settings.listening)
        self.service = service = MortalService(
            "combiner",
            __version__,
            settings,
            self.stopping,
            lambda metrics, health: AccessControl(policy, metrics, health, None),
            calls_wait=True,
        )
        self.metrics, self.health, self.supervisor = service.metrics, service.health, service.supervisor
        self.app = CombinerApp(
            settings, replica_name(), gate(state), store, self.metrics, self.health, self.supervisor, windows
        )
        service.owns("state", state.aclose)
        service.owns("store", store.close)
        models = ModelServiceServicer(store, self._transfers)
        compose(service, self.app, {**self.app.servicers, "ModelService": models})
        self._stopped = False
        self._clients: list[Client] = []
        self.address = ""

    async def start(self) -> None:
        await self.service.__aenter__()
        self.address = f"127.0.0.1:{self.service.port}"
        self.operator = OperatorClient(self.address, patience=DEADLINE)

    def client(self, name: str, *, package: str = "grpc", generation: str = "0.6") -> Client:
        """A client of this combiner. It is closed with it."""
        client = Client(self.address, name, package=package, generation=generation)
        self._clients.append(client)
        return client

    async def stop(self) -> None:
        """In order, as on SIGTERM."""
        if await self._leave():
            await self.service.__aexit__(None, None, None)
            assert self.stopping.failed == self.expects_failure, self.stopping.reason

    async def kill(self) -> None:
        """As SIGKILL would: nothing is given back, nobody is told."""
        if await self._leave():
            self._gate.die()
            await self.supervisor.stop()
            await self.service.kill()

    async def _leave(self) -> bool:
        """The callers go first. False if that was done before."""
        if self._stopped:
            return False
        self._stopped = True
        for client in self._clients:
            await client.close()
        await self.operator.close()
        return True


class Client:
    """A FEDn client on the wire, one step at a time."""

    def __init__(self, address: str, name: str, *, package: str, generation: str) -> None:
        self.name = name
        self.link = Link(address, package=package)
        self.messages = Messages(name, generation)
        self._streams: list[TaskStream] = []
        self._beating: asyncio.Task[None] | None = None

    async def close(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])
        await self.link.close()

    def open(self, rpc: str = TRAINING_STREAM) -> TaskStream:
        call = getattr(self.link.combiner, rpc)(self.messages.subscription, timeout=5 * DEADLINE)
        return TaskStream(call)

    async def beat(self) -> fedn_pb2.Response:
        return await self.link.connector.SendHeartbeat(self.messages.heartbeat, timeout=DEADLINE)

    def keep_beating(self, every: float = 0.2) -> None:
        async def beat() -> None:
            while True:
                await self.beat()
                await asyncio.sleep(every)

        self._beating = asyncio.create_task(beat(), name=f"heart of {self.name}")

    async def upload(self, content: bytes | Path) -> str:
        update_id = str(uuid.uuid4())
        await upload(self.link, update_id, content)
        return update_id

    def update(
        self, task: Task, update_id: str, num_examples: int = 1, *, tell: str = ""
    ) -> fedn_pb2.ModelUpdate:
        """What this client sends for a task. `tell`: another meta instead."""
        message = self.messages.update(task, update_id, num_examples, {}, Timings(0, 0, 0, 0))
        if tell:
            message.meta = tell
        return message

    async def send(self, message: fedn_pb2.ModelUpdate | fedn_pb2.ModelValidation) -> fedn_pb2.Response:
        if isinstance(message, fedn_pb2.ModelUpdate):
            return await self.link.combiner.SendModelUpdate(message, timeout=5 * DEADLINE)
        return await self.link.combiner.SendModelValidation(message, timeout=5 * DEADLINE)

    async def train(self, task: Task, index: int, num_examples: int = 1) -> str:
        """Answer a training task with a one at `index`. Returns the update's id."""
        update_id = await self.upload(one_hot(index))
        await self.send(self.update(task, update_id, num_examples))
        return update_id

    async def validate(self, task: Task, **metrics: float) -> None:
        await self.send(self.messages.validation(task, metrics))

    async def fail(self, task: Task) -> None:
        await self.link.connector.SendStatus(self.messages.failed(task, "Oops"), timeout=DEADLINE)


class TaskStream:
    """One open stream of tasks."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def next(self) -> Task:
        try:
            request = await asyncio.wait_for(self.call.read(), DEADLINE)
        except TimeoutError:
            raise AssertionError(f"waited {DEADLINE:g} s for a task") from None
        assert request is not grpc.aio.EOF, "the stream ended cleanly"
        task = Task.of(request)
        assert task is not None
        return task

    async def cancel(self) -> None:
        self.call.cancel()
        await asyncio.wait_for(self.call.code(), DEADLINE)

    async def status(self) -> grpc.StatusCode:
        return await asyncio.wait_for(self.call.code(), DEADLINE)


def one_hot(index: int, width: int = WIDTH, dtype: str = "float32") -> bytes:
    vector = np.zeros(width, dtype)
    vector[index] = 1
    return to_npz({"w": vector})


def zeros(width: int = WIDTH) -> bytes:
    return to_npz({"w": np.zeros(width, np.float32)})


async def put_seed(replica: Replica, content: bytes = b"") -> str:
    """A registered model of zeros. Returns its id."""
    return (await replica.operator.put_model(content or zeros())).model_id


async def arrays_of(replica: Replica, model_id: str) -> dict[str, np.ndarray[Any, Any]]:
    content = await bytes_of(replica, model_id)
    path = replica.store._root / "read.npz"
    path.write_bytes(content)
    with np.load(path) as archive:
        return dict(archive)


async def bytes_of(replica: Replica, model_id: str) -> bytes:
    return await download_bytes(replica.operator.link, model_id)


async def weights_of(replica: Replica, job: pb.Job) -> dict[int, float]:
    """Who is in the aggregate of a job: index of the client -> its share of the examples, without zeros."""
    vector = (await arrays_of(replica, job.model_id))["w"]
    return {index: float(value) for index, value in enumerate(vector) if value}


def shares(*weights: int) -> dict[int, float]:
    """What `weights_of` says of clients 0, 1, ... with these numbers of examples, each folded once."""
    total = sum(weights)
    return {index: float(np.float32(weight / total)) for index, weight in enumerate(weights) if weight}


def training(model_id: str, **more: object) -> dict[str, object]:
    """Config of a training job that waits for its clients."""
    return {
        "task": "training",
        "model_id": model_id,
        "round_id": "1",
        "round_timeout": 60,
        "wait_for_clients": DEADLINE,
        "clients_required": 1,
        "helper_type": "numpyhelper",
        **more,
    }


async def until_silent(replica: Replica) -> None:
    """Until no client is active."""

    async def silent() -> bool:
        return not any(client.active for client in await replica.operator.list_clients())

    await eventually(silent, "silence")


def reasons(outcomes: Any) -> dict[str, str]:
    return {outcome.client: outcome.reason for outcome in outcomes}


def config_of(task: Task) -> dict[str, Any]:
    return dict(json.loads(task.request.data))


async def until_job(
    operator: OperatorClient, job_id: str, condition: Callable[[pb.Job], bool], what: str
) -> pb.Job:
    """The job when `condition` holds, looked at after each of its events."""
    job = pb.Job()
    try:
        async with asyncio.timeout(DEADLINE):
            async for _ in operator.watch_job(job_id):
                job = await operator.get_job(job_id)
                if condition(job):
                    return job
    except TimeoutError:
        pass
    raise AssertionError(f"{what}: {job}")


async def until_streams(replica: Replica, number: int) -> None:
    """Until exactly so many streams are open at this combiner, and registered."""

    async def there() -> bool:
        return len(replica.app.hub) == number and not replica.app.hub.unregistered

    await eventually(there, f"{number} streams")


@asynccontextmanager
async def no_task_left() -> AsyncIterator[None]:
    """What was started inside has ended when the block is left, or soon after."""
    before = asyncio.all_tasks()
    yield

    async def gone() -> bool:
        return not left()

    def left() -> list[str]:
        return [
            task.get_name() for task in asyncio.all_tasks() - before if task is not asyncio.current_task()
        ]

    try:
        async with asyncio.timeout(5):
            while left():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"tasks left over: {left()}") from None


class Gate:
    """Between a replica and its shared state: stops the replica, for what the others can see of it.

    While the gate is shut no call to journal, sessions and leases gets through. It shuts by itself when `at`
    (`jobs.accept`, for instance) is called: before that step is made, or if `after`, when it is made and the
    replica does not know it yet. A `claim` that found nothing to do is no step.
    """

    def __init__(self, at: str = "", *, after: bool = False) -> None:
        self._at = at
        self._after = after
        self._dead = False
        self._open = asyncio.Event()
        self._open.set()
        self._reached = asyncio.Event()

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._at = ""
        self._open.set()

    def die(self) -> None:
        """Nothing that stands at the gate goes on."""
        self._dead = True
        self._open.set()

    async def until_reached(self) -> None:
        try:
            await asyncio.wait_for(self._reached.wait(), DEADLINE)
        except TimeoutError:
            raise AssertionError(f"waited {DEADLINE:g} s for {self._at}") from None

    def __call__(self, shared: Shared) -> Shared:
        state: Any = shared
        for port in ("jobs", "leases", "sessions"):
            setattr(state, port, _Gated(port, getattr(state, port), self))
        return shared

    async def pass_through(self, step: str, call: Callable[[], Awaitable[Any]]) -> Any:
        if step == self._at and not self._after:
            self._shut_at_step()
        await self._wait()
        result = await call()
        nothing = step.endswith(".claim") and result is None
        if step == self._at and self._after and not nothing:
            self._shut_at_step()
        await self._wait()
        return result

    async def _wait(self) -> None:
        await self._open.wait()
        if self._dead:
            raise asyncio.CancelledError

    def _shut_at_step(self) -> None:
        self.shut()
        self._reached.set()


class _Gated:
    def __init__(self, name: str, port: Any, gate: Gate) -> None:
        self._name = name
        self._port = port
        self._gate = gate

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        if inspect.isasyncgenfunction(method):
            return method

        async def through(*args: Any, **kwargs: Any) -> Any:
            return await self._gate.pass_through(f"{self._name}.{name}", lambda: method(*args, **kwargs))

        return through


class StoreWithOutages(DiskStore):
    """A store that can be away."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.away = False
        self.refusals = 0

    def _look(self) -> None:
        if self.away:
            self.refusals += 1
            raise StoreUnavailable("told to be away")

    async def head(self, key: ObjectKey) -> ObjectInfo | None:
        self._look()
        return await super().head(key)

    @asynccontextmanager
    async def local_file(self, key: ObjectKey, *, max_bytes: int | None = None) -> AsyncIterator[Path]:
        self._look()
        async with super().local_file(key, max_bytes=max_bytes) as path:
            yield path

    @asynccontextmanager
    async def writer(self, key: ObjectKey, *, max_bytes: int) -> AsyncIterator[DiskWriter]:
        self._look()
        async with super().writer(key, max_bytes=max_bytes) as writer:
            yield writer


class Connected:
    """Clients 0 ... n-1 with their streams, for the length of an `async with` block.

    `others`: how many streams are open beside theirs.
    """

    def __init__(
        self, replica: Replica, n: int, rpc: str = TRAINING_STREAM, *, beat: bool = False, others: int = 0
    ) -> None:
        self._replica = replica
        self._others = others
        self.clients = [replica.client(f"c{index}") for index in range(n)]
        self.streams = [client.open(rpc) for client in self.clients]
        if beat:
            for client in self.clients:
                client.keep_beating()

    async def __aenter__(self) -> Self:
        await until_streams(self._replica, len(self.clients) + self._others)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self.streams:
            stream.call.cancel()

    async def tasks(self) -> list[Task]:
        """The next task of each."""
        return [await stream.next() for stream in self.streams]
