"""Third and further numbers of the elements that two float64 numbers cannot hold.

Each element is an expansion: float64 numbers whose exact sum is the sum (Shewchuk, "Adaptive precision
floating-point arithmetic and fast robust geometric predicates", 1997). A term runs down the numbers, each
addition handing its error to the next. Where the last one has an error, too, sweeps of exact additions from
the last number to the first move together what can be in one number; what is left then is one number more.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from combiner.aggregation.bins import TOP, digits
from combiner.aggregation.blockfile import BlockFile
from combiner.aggregation.twosum import Doubles, add_in_place, two_sum

MAX_LEVELS: Final = TOP + 1
"""So many numbers of 40 bits are the whole range of float64: no expansion has to be longer."""

Head = tuple[Doubles, Doubles]


class Expansions:
    """The numbers beyond the first two, `levels`, of the blocks that need them.

    At most `most_blocks` blocks of the file are used, or MAX_LEVELS if that is more. When they are, the last
    one of the blocks with levels is dropped, again and again until there is room: the first one always stays.
    """

    def __init__(self, file: BlockFile, block_elements: int, most_blocks: int) -> None:
        self._file = file
        self._most_blocks = max(most_blocks, MAX_LEVELS)
        self._levels: dict[int, list[int]] = {}
        self.dropped: set[int] = set()  # blocks whose sums are incomplete
        self._number, self._work, self._spare = (np.empty(block_elements) for _ in range(3))

    @property
    def blocks(self) -> list[int]:
        """Those that have levels."""
        return list(self._levels)

    def has(self, block: int) -> bool:
        return block in self._levels

    def add(self, block: int, within: int, head: Head, term: Doubles) -> None:
        """Add a term that the two numbers in `head` could not take, or drop the block. All arrays are
        overwritten.
        """
        if block in self.dropped:
            return
        levels = self._levels.setdefault(block, [])
        number, work, spare = (buffer[: term.size] for buffer in (self._number, self._work, self._spare))
        for level in levels:
            self._file.load(level, within, number)
            add_in_place(number, term, work, spare)
            self._file.store(level, within, number)
            if not term.any():
                return
        if levels:
            term = self._squeeze(levels, within, head, term)
        if term.any() and self._grow(block):
            self._file.store(levels[-1], within, term)

    def read(self, block: int, within: int, count: int) -> list[Doubles]:
        """The further numbers of some elements of the block."""
        levels = self._levels.get(block, ())
        return [self._file.load(level, within, np.empty(count)) for level in levels]

    def remove(self, block: int) -> None:
        """Give the block's room in the file to others."""
        for level in self._levels.pop(block):
            self._file.free(level)

    def _grow(self, block: int) -> bool:
        """One level more; False if the block was dropped for want of room."""
        while (level := self._file.allocate(self._most_blocks)) is None:
            last = max(self._levels)
            self.remove(last)
            self.dropped.add(last)
            if last == block:
                return False
        self._levels[block].append(level)
        return True

    def _squeeze(self, levels: list[int], within: int, head: Head, term: Doubles) -> Doubles:
        """Add the term to all numbers in as few as can be. Returns what is one number more, if not zero."""
        numbers = [*head, *(self._file.load(level, within, np.empty(term.size)) for level in levels), term]
        for _ in numbers:
            for index in range(len(numbers) - 1, 0, -1):
                numbers[index - 1], numbers[index] = two_sum(numbers[index - 1], numbers[index])
            if not numbers[-1].any():
                break
        else:
            if len(levels) == MAX_LEVELS:
                numbers = _shortest(numbers)
        for part, number in zip(head, numbers, strict=False):
            np.copyto(part, number)
        for level, number in zip(levels, numbers[2:], strict=False):
            self._file.store(level, within, number)
        return numbers[-1]


def _shortest(numbers: list[Doubles]) -> list[Doubles]:
    """As many numbers with the same sums, the last one zero."""
    found = digits(numbers)
    sums = [found[index] for index in sorted(found, reverse=True)]
    return sums + [np.zeros(numbers[0].size) for _ in range(len(numbers) - len(sums))]
