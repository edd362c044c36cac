"""Federated averaging: the mean of the updates, weighted by number of examples."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from combiner.aggregation.exact import BLOCK_ELEMENTS, MAX_WEIGHT, ExactSum
from combiner.aggregation.rounding import MAX_TOTAL
from fedcombiner.modelstorage.formats import Block, ModelSpec
from fedcombiner.modelstorage.formats.npz import CheckedUpdate, write_model

SCRATCH_MODELS: Final = 2
"""Disk space for sums, in sizes of the parent. Updates that are checked meanwhile take as much again each."""


class FedAvg:
    """FedAvg (McMahan et al., 2017) whose result depends on the set of (update, num_examples) and on
    nothing else.

    Costs 16 bytes an element, whatever the number of updates, and on disk SCRATCH_MODELS times the parent's
    size (or some 14 MB). Values too wild for that are dropped: while ``needs_another_pass``, all updates have
    to be folded again before the mean can be written. Methods are for one thread at a time; the next update
    may be checked in another one meanwhile.
    """

    def __init__(self, parent: ModelSpec, scratch_dir: Path) -> None:
        self.parent = parent
        self.updates = 0
        self.num_examples = 0
        self._sum = ExactSum(parent.elements, scratch_dir, SCRATCH_MODELS * parent.nbytes)
        self._incomplete = False
        self._again: list[int] | None = None  # num_examples of what was folded in this pass

    @property
    def scratch_bytes(self) -> int:
        """Disk space used by sums too long for memory."""
        return self._sum.scratch_bytes

    @property
    def needs_another_pass(self) -> bool:
        """Whether all updates have to be folded again: ``begin_pass``, ``fold_again`` each, ``end_pass``."""
        return self._sum.dropped > 0

    def fold(self, update: CheckedUpdate, num_examples: int) -> None:
        """Add one update, whole.

        Raises:
            ValueError: the update was checked against another model, num_examples is not in 1 … 2**29 - 1,
            or the total would
                exceed 2**50 - 1. Nothing was added.
            OSError: reading the update or writing the scratch file failed. The aggregator cannot be used
            any more: only a new
                one, into which the updates are folded again, knows what it holds.
        """
        self._refuse_if_incomplete()
        if update.parent != self.parent:
            raise ValueError("the update was checked against another model")
        if not 1 <= num_examples <= MAX_WEIGHT or self.num_examples + num_examples > MAX_TOTAL:
            total = self.num_examples + num_examples
            raise ValueError(
                f"num_examples is {num_examples} (at most {MAX_WEIGHT}), in all {total} (at most {MAX_TOTAL})"
            )
        self._each_block(update, num_examples, self._sum.add)
        self.updates += 1
        self.num_examples += num_examples

    def begin_pass(self) -> None:
        """Begin to sum again what was dropped."""
        self._refuse_if_incomplete()
        runs = [
            (offset, offset + tensor.elements, tensor.dtype)
            for offset, tensor in zip(self.parent.offsets, self.parent.tensors, strict=True)
        ]
        self._sum.begin_pass(runs, self.num_examples)
        self._again = []

    def fold_again(self, update: CheckedUpdate, num_examples: int) -> None:
        """Add one of the updates that were folded before. After an OSError the aggregator cannot be used."""
        if self._again is None:
            raise RuntimeError("no pass was begun")
        self._each_block(update, num_examples, self._sum.add_again)
        self._again.append(num_examples)

    def end_pass(self) -> None:
        """All updates were folded again.

        Raises ValueError when they were not those that were folded before. The aggregator cannot be used any
        more then.
        """
        again, self._again = self._again or [], None
        if (len(again), sum(again)) != (self.updates, self.num_examples):
            self._incomplete = True
            raise ValueError(
                f"{len(again)} updates of {sum(again)} examples were folded again, "
                f"{self.updates} of {self.num_examples} before"
            )

    def write(self, target: str | os.PathLike[str] | IO[bytes]) -> None:
        """Write the mean as npz with the parent's names, shapes and dtypes.

        Raises ValueError when there is no update, RuntimeError when another pass is needed.
        """
        self._refuse_if_incomplete()
        if not self.updates:
            raise ValueError("there is no update to average")
        write_model(target, self.parent, self._means())

    def close(self) -> None:
        """Free memory and scratch files; closing again does nothing."""
        self._incomplete = True
        self._sum.close()

    def _each_block(
        self, update: CheckedUpdate, num_examples: int, add: Callable[[int, NDArray[Any], int], None]
    ) -> None:
        self._refuse_if_incomplete()
        self._incomplete = True
        offsets = self.parent.offsets
        for index, start, values in update.blocks(BLOCK_ELEMENTS):
            add(offsets[index] + start, values, num_examples)
        self._incomplete = False

    def _means(self) -> Iterator[Block]:
        # One buffer for all blocks: new arrays of this size would be new pages of memory every time.
        buffer = np.empty(BLOCK_ELEMENTS)
        for index, (tensor, offset) in enumerate(zip(self.parent.tensors, self.parent.offsets, strict=True)):
            for start in range(0, tensor.elements, BLOCK_ELEMENTS):
                count = min(BLOCK_ELEMENTS, tensor.elements - start)
                means = buffer.view(tensor.dtype)[:count]
                self._sum.mean_into(means, offset + start, self.num_examples)
                yield index, start, means

    def _refuse_if_incomplete(self) -> None:
        if self._incomplete:
            raise RuntimeError("the aggregator is closed, or an update was folded only in part")
