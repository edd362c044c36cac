"""Aggregators: how the updates of a round become the next model. Synchronous code, to be run in worker
threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Final, Protocol

from combiner.aggregation.exact import MAX_WEIGHT
from combiner.aggregation.fedavg import FedAvg
from fedcombiner.modelstorage.formats import ModelSpec
from fedcombiner.modelstorage.formats.npz import CheckedUpdate

__all__ = ["AGGREGATORS", "MAX_NUM_EXAMPLES", "Aggregator", "FedAvg"]

MAX_NUM_EXAMPLES: Final = MAX_WEIGHT


class Aggregator(Protocol):
    """Folds updates as they come and writes the aggregate; ``FedAvg`` states the contract of each method."""

    @property
    def updates(self) -> int:
        """How many updates were folded."""

    @property
    def num_examples(self) -> int:
        """Sum of their numbers of examples."""

    def fold(self, update: CheckedUpdate, num_examples: int) -> None: ...

    @property
    def needs_another_pass(self) -> bool: ...

    def begin_pass(self) -> None: ...

    def fold_again(self, update: CheckedUpdate, num_examples: int) -> None: ...

    def end_pass(self) -> None: ...

    def write(self, target: str | os.PathLike[str] | IO[bytes]) -> None: ...

    def close(self) -> None: ...


AGGREGATORS: Final[Mapping[str, Callable[[ModelSpec, Path], Aggregator]]] = MappingProxyType(
    {"fedavg": FedAvg}
)
"""The aggregators that an operator can choose from, by name."""
