"""What does not fit in two float64 numbers of an exact sum, kept on disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

import numpy as np

from combiner.aggregation.bins import SAFE_DEPOSITS, TOP, pieces, take_multiples
from combiner.aggregation.twosum import Doubles

_ITEM: Final = 8


class Tail:
    """Exact sums of rarely used digits: per block of elements only the bins that something fell into, in an
    unnamed file.

    Memory is a few blocks. The file is created when the first number arrives and holds at most TOP + 1 = 52
    numbers of 8 bytes an element: that is the whole range of float64; float32 updates reach at most 8 of
    them. Not thread-safe. An OSError (a full disk) leaves the sum incomplete.
    """

    def __init__(self, scratch_dir: Path, block_elements: int, safe_deposits: int = SAFE_DEPOSITS) -> None:
        self._scratch_dir = scratch_dir
        self._block = block_elements
        self._safe_deposits = safe_deposits
        self._file = -1
        self._slots: dict[tuple[int, int], int] = {}
        self._deposits: dict[tuple[int, int], int] = {}
        self._reached: set[int] = set()
        self._piece, self._bin = np.empty(block_elements), np.empty(block_elements)

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self._slots) * self._block * _ITEM

    def add(self, start: int, values: Doubles) -> None:
        """Add values to the elements from start on; ``values`` is overwritten."""
        while values.size:
            block, within = divmod(start, self._block)
            here = values[: self._block - within]
            for index, piece in pieces(here, self._piece[: here.size]):
                self._deposit(block, index, within, piece)
            start, values = start + here.size, values[here.size :]

    def read(self, start: int, count: int) -> list[Doubles]:
        """Arrays whose sum is the tail of the elements; all must lie in one block. Empty where the tail is
        zero.
        """
        block, within = divmod(start, self._block)
        keys = [key for index in range(TOP + 1) if (key := (block, index)) in self._slots]
        found = [self._load(key, within, np.empty(count)) for key in keys]
        return [values for values in found if values.any()]

    def reaches(self, start: int) -> bool:
        """Whether the block of this element has a tail."""
        return start // self._block in self._reached

    def close(self) -> None:
        """Give the file back; closing again does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _deposit(self, block: int, index: int, within: int, piece: Doubles) -> None:
        key = (block, index)
        if key not in self._slots:
            self._allocate(key)
        if self._deposits[key] == self._safe_deposits and index < TOP:
            self._hand_up(key)
        values = self._load(key, within, self._bin[: piece.size])
        np.add(values, piece, out=values)
        self._store(key, within, values)
        self._deposits[key] += 1

    def _hand_up(self, key: tuple[int, int]) -> None:
        """Move what has grown beyond the bin's width to the bin above, before it could be rounded."""
        block, index = key
        values = self._load(key, 0, np.empty(self._block))
        carry = np.empty(self._block)
        take_multiples(values, index + 1, carry)
        self._store(key, 0, values)
        self._deposits[key] = 1
        self._deposit(block, index + 1, 0, carry)

    def _allocate(self, key: tuple[int, int]) -> None:
        if self._file < 0:
            with tempfile.TemporaryFile(dir=self._scratch_dir, buffering=0) as file:
                self._file = os.dup(file.fileno())
        self._slots[key] = len(self._slots)
        self._deposits[key] = 0
        self._reached.add(key[0])
        os.ftruncate(self._file, self.nbytes)

    def _load(self, key: tuple[int, int], within: int, target: Doubles) -> Doubles:
        size = os.preadv(self._file, [target.data.cast("B")], self._offset(key, within))
        if size != target.nbytes:
            raise OSError("the scratch file of an exact sum was cut off")
        return target

    def _store(self, key: tuple[int, int], within: int, values: Doubles) -> None:
        offset, data = self._offset(key, within), values.data.cast("B")
        while data:
            written = os.pwrite(self._file, data, offset)
            offset, data = offset + written, data[written:]

    def _offset(self, key: tuple[int, int], within: int) -> int:
        return (self._slots[key] * self._block + within) * _ITEM
