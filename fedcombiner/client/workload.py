"""What a client does with a task, apart from talking to the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fedcombiner.client.arrays import Arrays, read_arrays, write_arrays
from fedcombiner.client.messages import Task
from fedcombiner.client.threads import in_daemon_thread
from fedcombiner.client.transfer import Sink
from fedcombiner.wire.eras import PREDICTION

Config = Mapping[str, Any]
Metrics = Mapping[str, Any]

Train = Callable[[Arrays, Config], tuple[Mapping[str, Any], int, Metrics]]
"""(arrays of the global model, config of the round) -> (trained arrays, number of examples, metrics)."""

Validate = Callable[[Arrays, Config], Metrics]
"""(arrays of a model, config of the round) -> metrics, or predictions if it is for inference."""

Fetch = Callable[[Path | Sink], Awaitable[int]]
"""Download the task's model into a file or a sink."""


@dataclass(frozen=True)
class Update:
    """A trained model, not yet uploaded. The file, if it is one, may be overwritten by the next task.

    Attributes:
        num_examples: the update's weight in the average, at least 1.
        metrics: numbers by name that travel with the update.
    """

    source: Path | bytes
    num_examples: int
    metrics: Metrics = field(default_factory=dict)


class Workload(Protocol):
    """Does tasks, one at a time. Whatever it raises fails the task, and the server is told so."""

    trains: bool
    validates: bool

    async def train(self, task: Task, fetch: Fetch) -> Update:
        """Make an update of the task's model."""

    async def validate(self, task: Task, fetch: Fetch) -> Metrics:
        """Measure the task's model, or predict with it if the task's kind is `PREDICTION`."""


class CallbackWorkload:
    """Hands the arrays of a model to plain functions, each call in a thread of its own.

    `scratch` is a directory for this client alone; it holds at most one model and one update.
    """

    def __init__(
        self, scratch: Path, *, train: Train | None, validate: Validate | None, infer: Validate | None
    ) -> None:
        self._model = scratch / "model.npz"
        self._update = scratch / "update.npz"
        self._train = train
        self._validate = validate
        self._infer = infer
        self.trains = train is not None
        self.validates = validate is not None or infer is not None

    async def train(self, task: Task, fetch: Fetch) -> Update:
        if self._train is None:
            raise NotImplementedError("this client does not train")
        await fetch(self._model)
        return await in_daemon_thread(partial(self._train_file, self._train, task.config), "train")

    async def validate(self, task: Task, fetch: Fetch) -> Metrics:
        function = self._infer if task.kind == PREDICTION else self._validate
        if function is None:
            raise NotImplementedError("this client does not do that")
        await fetch(self._model)
        return await in_daemon_thread(partial(self._validate_file, function, task.config), "validate")

    def _train_file(self, train: Train, config: Config) -> Update:
        arrays, num_examples, metrics = train(read_arrays(self._model), config)
        write_arrays(self._update, arrays)
        return Update(self._update, num_examples, metrics)

    def _validate_file(self, validate: Validate, config: Config) -> Metrics:
        return validate(read_arrays(self._model), config)
