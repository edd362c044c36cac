"""A weighted sum of arrays that is exact at every moment, so that it does not depend on the order of its
terms.

Each element is two float64 numbers in memory (16 bytes) and, in the rare blocks where these cannot hold it,
a tail on disk. ``docs/aggregation.md`` has the reasoning.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from combiner.aggregation.products import Products
from combiner.aggregation.rounding import MAX_TOTAL, Divider, mean_of_many
from combiner.aggregation.tail import Tail
from combiner.aggregation.twosum import Doubles, add_in_place

BLOCK_ELEMENTS: Final = 32 << 10
"""256 KiB an array: the arrays of one step stay in the processor's cache."""

MAX_WEIGHT: Final = (1 << 29) - 1
_TAIL_ELEMENTS: Final = 4 << 10


class ExactSum:
    """The sums of ``elements`` elements; not thread-safe.

    Terms are finite and at most 2**960, weights at most MAX_WEIGHT, their total at most MAX_TOTAL: no sum
    can overflow. An OSError (the scratch disk is full) leaves the sum incomplete; it must be made again.
    """

    def __init__(self, elements: int, scratch_dir: Path) -> None:
        self._high = np.zeros(elements)
        self._low = np.zeros(elements)
        self._tail = Tail(scratch_dir, BLOCK_ELEMENTS)
        self._divider = Divider(BLOCK_ELEMENTS)
        self._products = Products(BLOCK_ELEMENTS)
        self._work, self._spare = np.empty(BLOCK_ELEMENTS), np.empty(BLOCK_ELEMENTS)

    @property
    def tail_bytes(self) -> int:
        """Disk space used for what did not fit in memory."""
        return self._tail.nbytes

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
        for first, stop in _within_blocks(start, start + out.size):
            self._mean(first, stop, total, out[first - start : stop - start])

    def close(self) -> None:
        """Free memory and disk; the sum cannot be used any more."""
        self._high = self._low = np.zeros(0)
        self._tail.close()

    def _add(self, start: int, term: Doubles) -> None:
        work, spare = self._work[: term.size], self._spare[: term.size]
        add_in_place(self._high[start : start + term.size], term, work, spare)
        add_in_place(self._low[start : start + term.size], term, work, spare)
        if term.any():
            self._tail.add(start, term)

    def _mean(self, first: int, stop: int, total: int, out: NDArray[Any]) -> None:
        self._divider.mean_of_pairs(self._high[first:stop], self._low[first:stop], total, out)
        if self._tail.reaches(first):
            # All bins of a block at once would be many times a block: smaller steps bound the memory.
            for at in range(first, stop, _TAIL_ELEMENTS):
                end = min(at + _TAIL_ELEMENTS, stop)
                self._mean_with_tail(at, end, total, out[at - first : end - first])

    def _mean_with_tail(self, first: int, stop: int, total: int, out: NDArray[Any]) -> None:
        tail = self._tail.read(first, stop - first)
        if tail:
            longer = np.flatnonzero(np.logical_or.reduce(tail))
            parts = [self._high[first:stop], self._low[first:stop], *tail]
            means = np.empty(longer.size, out.dtype)
            mean_of_many([part[longer] for part in parts], total, means)
            out[longer] = means


def _within_blocks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    while start < stop:
        end = min(stop, (start // BLOCK_ELEMENTS + 1) * BLOCK_ELEMENTS)
        yield start, end
        start = end
