"""Products of an array and an integer weight, as float64 arrays that add up to them exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from combiner.aggregation.twosum import SIGNIFICANT_BITS, Doubles

_LOWER_15_BITS = (1 << 15) - 1
_MAX_SPLIT_BITS = SIGNIFICANT_BITS // 2


class Products:
    """Makes the products of blocks of at most ``block_elements``; its buffers are used again for every
    block.
    """

    def __init__(self, block_elements: int) -> None:
        self._part, self._term, self._rest = (np.empty(block_elements) for _ in range(3))

    def of(self, values: NDArray[Any], weight: int) -> Iterator[Doubles]:
        """Arrays of values.size elements whose sum is exactly values * weight.

        Args:
            values: flat, of bool, integers, or float16, float32, float64 (finite, at most 2**960).
            weight: 1 … 2**29 - 1.

        The caller may overwrite an array that it was given; it is valid until the next one.
        """
        bits = _significant_bits(values.dtype)
        if bits + _significant_bits_of(weight) <= SIGNIFICANT_BITS:
            yield np.multiply(values, float(weight), out=self._term[: values.size], dtype=np.float64)
            return
        for part in self._parts(values):
            yield from self._split(part, min(bits, SIGNIFICANT_BITS), weight)

    def _parts(self, values: NDArray[Any]) -> Iterator[Doubles]:
        part = self._part[: values.size]
        if values.dtype.kind == "f" or values.dtype.itemsize < 8:
            np.copyto(part, values)
            yield part
            return
        # 64-bit integers have more digits than a float64: halves of 32 bits have not.
        np.copyto(part, values >> 32)
        np.multiply(part, 2.0**32, out=part)
        yield part
        np.copyto(part, values & 0xFFFFFFFF)
        yield part

    def _split(self, part: Doubles, bits: int, weight: int) -> Iterator[Doubles]:
        weight_bits = _significant_bits_of(weight)
        if bits + weight_bits <= SIGNIFICANT_BITS:
            yield np.multiply(part, float(weight), out=self._term[: part.size])
        elif weight_bits > _MAX_SPLIT_BITS:
            yield from self._split(part, bits, weight & ~_LOWER_15_BITS)
            yield from self._split(part, bits, weight & _LOWER_15_BITS)
        else:
            # The upper 53 - b bits and the lower b bits of a value times b <= 26 bits of weight: both fit
            # in 53 bits.
            upper, lower = self._term[: part.size], self._rest[: part.size]
            np.bitwise_and(part.view(np.int64), np.int64(-(1 << weight_bits)), out=upper.view(np.int64))
            np.subtract(part, upper, out=lower)
            yield np.multiply(upper, float(weight), out=upper)
            if lower.any():
                yield np.multiply(lower, float(weight), out=lower)


def _significant_bits(dtype: np.dtype[Any]) -> int:
    if dtype.kind == "f":
        return np.finfo(dtype).nmant + 1
    return 1 if dtype.kind == "b" else dtype.itemsize * 8


def _significant_bits_of(weight: int) -> int:
    return (weight // (weight & -weight)).bit_length()
