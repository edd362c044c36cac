"""Blocks of float64 numbers in an unnamed scratch file of bounded size."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

import numpy as np

from combiner.aggregation.twosum import Doubles

_ITEM: Final = 8


class BlockFile:
    """The file is created with the first block and vanishes with the process. Not thread-safe.

    An OSError (a full disk) leaves the caller's sums incomplete.
    """

    def __init__(self, scratch_dir: Path, block_elements: int) -> None:
        self._scratch_dir = scratch_dir
        self._block = block_elements
        self._file = -1
        self._free: list[int] = []
        self._blocks = 0  # in the file, the free ones too

    @property
    def block_bytes(self) -> int:
        return self._block * _ITEM

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self._blocks * self.block_bytes

    @property
    def used(self) -> int:
        """How many blocks are in use."""
        return self._blocks - len(self._free)

    def allocate(self, most: int) -> int | None:
        """A block of zeros; None if `most` are in use already."""
        if self.used >= most:
            return None
        if self._free:
            block = self._free.pop()
            self.store(block, 0, np.zeros(self._block))
            return block
        if self._file < 0:
            with tempfile.TemporaryFile(dir=self._scratch_dir, buffering=0) as file:
                self._file = os.dup(file.fileno())
        self._blocks += 1
        os.ftruncate(self._file, self.nbytes)
        return self._blocks - 1

    def free(self, block: int) -> None:
        """The next one to be allocated takes its place."""
        self._free.append(block)

    def load(self, block: int, within: int, target: Doubles) -> Doubles:
        """Fill target from the block's element `within` on."""
        size = os.preadv(self._file, [target.data.cast("B")], self._offset(block, within))
        if size != target.nbytes:
            raise OSError("the scratch file of an exact sum was cut off")
        return target

    def store(self, block: int, within: int, values: Doubles) -> None:
        offset, data = self._offset(block, within), values.data.cast("B")
        while data:
            written = os.pwrite(self._file, data, offset)
            offset, data = offset + written, data[written:]

    def close(self) -> None:
        """Give the file back; closing again does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _offset(self, block: int, within: int) -> int:
        return (block * self._block + within) * _ITEM
