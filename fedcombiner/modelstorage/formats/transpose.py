"""Rewriting an array from Fortran order to C order between two files, in bounded memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

TILE_BYTES: Final = 2 << 20


def transpose_file(
    source: tuple[int, int], target: tuple[int, int], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> None:
    """Read an array in Fortran order and write it in C order.

    Source and target are (file descriptor, offset); the two regions must not overlap. Goes tile by tile, each
    near to a cube, so that runs are long in both files: a matrix takes about
    ``2 * nbytes / sqrt(TILE_BYTES * itemsize)`` system calls.
    """
    reversed_shape = shape[::-1]
    for tile in _tiles(tuple((0, length) for length in shape), TILE_BYTES // dtype.itemsize):
        values = np.empty(tuple(stop - start for start, stop in tile), dtype, order="F")
        data = values.T.reshape(-1).data.cast("B")
        for at, first, count in _runs(reversed_shape, tile[::-1]):
            span = slice(at * dtype.itemsize, (at + count) * dtype.itemsize)
            _read_into(source[0], data[span], source[1] + first * dtype.itemsize)
        data = np.ascontiguousarray(values).reshape(-1).data.cast("B")
        for at, first, count in _runs(shape, tile):
            span = slice(at * dtype.itemsize, (at + count) * dtype.itemsize)
            write_all(target[0], data[span], target[1] + first * dtype.itemsize)


def write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _read_into(fd: int, target: memoryview, offset: int) -> None:
    while target:
        count = os.preadv(fd, [target], offset)
        if not count:
            raise OSError(f"the file ended at {offset} while it was read")
        target, offset = target[count:], offset + count


_Tile = tuple[tuple[int, int], ...]


def _tiles(tile: _Tile, limit: int) -> Iterator[_Tile]:
    """Cut a range of every axis into tiles of at most ``limit`` elements, halving the longest axis each
    time.
    """
    lengths = [stop - start for start, stop in tile]
    if math.prod(lengths) <= limit:
        yield tile
        return
    axis = lengths.index(max(lengths))
    start, stop = tile[axis]
    middle = (start + stop) // 2
    for half in ((start, middle), (middle, stop)):
        yield from _tiles((*tile[:axis], half, *tile[axis + 1 :]), limit)


def _runs(shape: tuple[int, ...], tile: _Tile) -> Iterator[tuple[int, int, int]]:
    """The contiguous runs of a tile in a C-ordered array of that shape: (index in tile, index in array,
    count).
    """
    axis, count = len(shape), 1
    while axis > 0 and (axis == len(shape) or tile[axis] == (0, shape[axis])):
        axis -= 1
        count *= tile[axis][1] - tile[axis][0]
    strides = [math.prod(shape[index + 1 :]) for index in range(len(shape))]
    corner = sum(start * stride for (start, _), stride in zip(tile, strides, strict=True))
    outer = [stop - start for start, stop in tile[:axis]]
    for number, index in enumerate(np.ndindex(*outer)):
        yield (
            number * count,
            corner + sum(i * stride for i, stride in zip(index, strides, strict=False)),
            count,
        )
