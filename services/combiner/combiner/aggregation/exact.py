"""A weighted sum of arrays that is exact at every moment, so that it does not depend on the order of its
terms.

Each element is two float64 numbers in memory (16 bytes) and, in the rare blocks where these cannot hold it,
more of them on disk. Blocks for which there is no room are dropped and summed again at the end, a few at a
time. ``docs/aggregation.md`` has the reasoning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from combiner.aggregation.blockfile import BlockFile
from combiner.aggregation.expansion import Expansions
from combiner.aggregation.products import Products
from combiner.aggregation.rounding import MAX_TOTAL, Divider, mean_of_many
from combiner.aggregation.twosum import Doubles, add_in_place

BLOCK_ELEMENTS: Final = 32 << 10
"""256 KiB an array: the arrays of one step stay in the processor's cache."""

MAX_WEIGHT: Final = (1 << 29) - 1
_STEP_ELEMENTS: Final = 4 << 10


class ExactSum:
    """The sums of ``elements`` elements; not thread-safe.

    Terms are finite and at most 2**960, weights at most MAX_WEIGHT, their total at most MAX_TOTAL: no sum
    can overflow. An OSError (the scratch disk is full) leaves the sum incomplete; it must be made again.

    Takes ``max_scratch`` bytes of disk, or room for MAX_LEVELS blocks if that is more. While blocks are
    ``dropped``, there is no mean: call ``begin_pass``, and add all terms again. Each pass makes at least one
    block complete.
    """

    def __init__(self, elements: int, scratch_dir: Path, max_scratch: int) -> None:
        self._high = np.zeros(elements)
        self._low = np.zeros(elements)
        size = max(1, min(elements, BLOCK_ELEMENTS))
        self._file = BlockFile(scratch_dir, size)
        self._longer = Expansions(self._file, size, _most_blocks(elements, max_scratch))
        self._settled: set[int] = set()  # blocks whose means are kept where their sums were
        self._pass: frozenset[int] = frozenset()  # blocks that are summed again
        self._divider = Divider(BLOCK_ELEMENTS)
        self._products = Products(BLOCK_ELEMENTS)
        self._work, self._spare = np.empty(BLOCK_ELEMENTS), np.empty(BLOCK_ELEMENTS)

    @property
    def scratch_bytes(self) -> int:
        """Disk space used for what did not fit in memory."""
        return self._file.nbytes

    @property
    def dropped(self) -> int:
        """How many blocks have to be summed again."""
        return len(self._longer.dropped)

    def add(self, start: int, values: NDArray[Any], weight: int) -> None:
        """Add values * weight, exactly, to the elements from ``start`` on.

        Args:
            values: flat, of bool, any integers, float16, float32 or float64.
            weight: 1 … MAX_WEIGHT.
        """
        if not 1 <= weight <= MAX_WEIGHT:
            raise ValueError(f"weight is {weight}, allowed are 1 to {MAX_WEIGHT}")
        for first in range(0, values.size, BLOCK_ELEMENTS):
            block = values[first : first + BLOCK_ELEMENTS]
            for term in self._products.of(block, weight):
                self._add(start + first, term)

    def begin_pass(self, runs: Iterable[tuple[int, int, np.dtype[Any]]], total: int) -> None:
        """Keep the means of all complete blocks that take room on disk, and begin to sum the dropped ones
        again.

        Args:
            runs: of all elements, the first one, the end and the dtype of those that have the same.
            total: as for ``mean_into``.
        """
        complete = frozenset(self._longer.blocks)
        for start, end, dtype in runs:
            for first, stop in _within_blocks(start, end):
                if first // BLOCK_ELEMENTS in complete:
                    self._settle(first, stop, total, dtype)
        for block in complete:
            self._longer.remove(block)
        self._settled |= complete
        self._pass, self._longer.dropped = frozenset(self._longer.dropped), set()
        for block in self._pass:
            start = block * BLOCK_ELEMENTS
            self._high[start : start + BLOCK_ELEMENTS] = self._low[start : start + BLOCK_ELEMENTS] = 0.0

    def add_again(self, start: int, values: NDArray[Any], weight: int) -> None:
        """As ``add``, for the blocks of this pass."""
        for first, stop in _within_blocks(start, start + values.size):
            if first // BLOCK_ELEMENTS in self._pass:
                self.add(first, values[first - start : stop - start], weight)

    def mean(self, start: int, count: int, total: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The means of ``count`` elements as a new array; see ``mean_into``."""
        result = np.empty(count, dtype)
        self.mean_into(result, start, total)
        return result

    def mean_into(self, out: NDArray[Any], start: int, total: int) -> None:
        """Set out (flat) to the sums from ``start`` on, divided by the total and correctly rounded to its
        dtype.

        Ties go to even, also for integers and bool. What lies beyond the dtype's range (possible only when
        the updates' dtypes reach further) becomes its last finite value. A sum of zero gives +0.0.
        """
        if not 1 <= total <= MAX_TOTAL:
            raise ValueError(f"the total weight is {total}, allowed are 1 to {MAX_TOTAL}")
        if self.dropped:
            raise RuntimeError(f"{self.dropped} blocks of the sum have to be summed again")
        for first, stop in _within_blocks(start, start + out.size):
            self._mean(first, stop, total, out[first - start : stop - start])

    def close(self) -> None:
        """Free memory and disk; the sum cannot be used any more."""
        self._high = self._low = np.zeros(0)
        self._file.close()

    def _add(self, start: int, term: Doubles) -> None:
        work, spare = self._work[: term.size], self._spare[: term.size]
        add_in_place(self._high[start : start + term.size], term, work, spare)
        add_in_place(self._low[start : start + term.size], term, work, spare)
        if term.any():
            for first, stop in _within_blocks(start, start + term.size):
                self._add_longer(first, stop, term[first - start : stop - start])

    def _add_longer(self, first: int, stop: int, term: Doubles) -> None:
        if term.any():
            block, within = divmod(first, BLOCK_ELEMENTS)
            self._longer.add(block, within, (self._high[first:stop], self._low[first:stop]), term)

    def _mean(self, first: int, stop: int, total: int, out: NDArray[Any]) -> None:
        block = first // BLOCK_ELEMENTS
        if block in self._settled:
            numbers = self._high[first:stop]
            np.copyto(out, numbers.view(out.dtype) if _is_wide(out.dtype) else numbers, casting="unsafe")
            return
        self._divider.mean_of_pairs(self._high[first:stop], self._low[first:stop], total, out)
        if self._longer.has(block):
            for at, end in _steps(first, stop):
                longer = self._longer.read(block, at % BLOCK_ELEMENTS, end - at)
                head = self._high[at:end], self._low[at:end]
                _correct(out[at - first : end - first], head, longer, total)

    def _settle(self, first: int, stop: int, total: int, dtype: np.dtype[Any]) -> None:
        means = np.empty(stop - first, dtype)
        self._mean(first, stop, total, means)
        numbers = self._high[first:stop]
        np.copyto(numbers.view(dtype) if _is_wide(dtype) else numbers, means)


def _most_blocks(elements: int, max_scratch: int) -> int:
    """A whole number of levels, the last block of which may be shorter than the others, needs no pass."""
    levels = max_scratch // (8 * max(1, elements))
    return max(levels * -(-elements // BLOCK_ELEMENTS), max_scratch // (8 * BLOCK_ELEMENTS))


def _correct(out: NDArray[Any], head: tuple[Doubles, Doubles], further: list[Doubles], total: int) -> None:
    """Set the means of those elements that have further numbers; the others are right."""
    longer = np.flatnonzero(np.logical_or.reduce(further))
    means = np.empty(longer.size, out.dtype)
    mean_of_many([part[longer] for part in (*head, *further)], total, means)
    out[longer] = means


def _is_wide(dtype: np.dtype[Any]) -> bool:
    """Whether not all of its values are float64 numbers."""
    return dtype.kind in "iu" and dtype.itemsize == 8


def _steps(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """All numbers of a block's elements at once would be many times a block: smaller steps bound the
    memory.
    """
    for at in range(start, stop, _STEP_ELEMENTS):
        yield at, min(at + _STEP_ELEMENTS, stop)


def _within_blocks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    while start < stop:
        end = min(stop, (start // BLOCK_ELEMENTS + 1) * BLOCK_ELEMENTS)
        yield start, end
        start = end
