"""Work that is made up: updates of known content, answers when they are wanted.

Contents are made in the event loop. For models of more than a few megabytes send a file, which is read while
it is sent.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedcombiner.client.arrays import write_arrays
from fedcombiner.client.messages import Task
from fedcombiner.client.workload import Fetch, Metrics, Update

Content = Callable[[int, Task], Path | bytes]
"""(index of the client, task) -> the bytes of its update."""


class SimulatedFailure(Exception):
    """A client that was told to fail does so."""


class _Drain:
    """Takes a download and keeps nothing."""

    def write(self, data: object, /) -> None: ...


@dataclass
class MadeUp:
    """A workload that downloads the model, forgets it, and answers after a while.

    Attributes:
        content: gives the update of a client.
        num_examples: weight of each client's update.
        delay: seconds until the answer, after the download.
        fails: whether the client fails this task.
        metrics: what a validation says.
        downloads: whether the model is downloaded at all.
    """

    index: int
    content: Content
    num_examples: Callable[[int], int] = lambda index: 1
    delay: Callable[[int, Task], float] = lambda index, task: 0.0
    fails: Callable[[int, Task], bool] = lambda index, task: False
    metrics: Mapping[str, float] = field(default_factory=lambda: {"loss": 1.0, "accuracy": 0.5})
    downloads: bool = True
    trains: bool = True
    validates: bool = True

    async def train(self, task: Task, fetch: Fetch) -> Update:
        await self._pretend(task, fetch)
        return Update(self.content(self.index, task), self.num_examples(self.index))

    async def validate(self, task: Task, fetch: Fetch) -> Metrics:
        await self._pretend(task, fetch)
        return self.metrics

    async def _pretend(self, task: Task, fetch: Fetch) -> None:
        if self.downloads:
            await fetch(_Drain())
        await asyncio.sleep(self.delay(self.index, task))
        if self.fails(self.index, task):
            raise SimulatedFailure


def one_hot(width: int, *, name: str = "w", dtype: str = "float32") -> Content:
    """Client i sends a vector of zeros with a one at i, so that the aggregate shows who is in it."""

    def content(index: int, task: Task) -> bytes:
        vector = np.zeros(width, dtype)
        vector[index] = 1
        return to_npz({name: vector})

    return content


def random_like(arrays: Mapping[str, np.ndarray[Any, Any]], *, seed: int = 0) -> Content:
    """Client i sends standard normal numbers in the shapes of `arrays`, the same with each call."""

    def content(index: int, task: Task) -> bytes:
        rng = np.random.default_rng((seed, index))
        return to_npz({k: rng.standard_normal(v.shape).astype(v.dtype) for k, v in arrays.items()})

    return content


def sent_as_is(source: Path | bytes) -> Content:
    """Every client sends the same bytes; a file is read while it is sent."""
    return lambda index, task: source


def to_npz(arrays: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """The bytes of an uncompressed `.npz` file."""
    buffer = io.BytesIO()
    write_arrays(buffer, arrays)
    return buffer.getvalue()
