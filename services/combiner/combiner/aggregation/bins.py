"""Exact sums of any float64 numbers in bins of 40 bits.

A number is cut at fixed powers of two into pieces of at most 40 bits, and the pieces that lie between the
same two powers are summed in one float64, where they are multiples of a common unit: nothing is ever
rounded. Sources: Demmel and Nguyen, "Parallel reproducible summation", 2015; Neal, "Fast exact summation
using small and large superaccumulators", 2015.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from combiner.aggregation.twosum import Doubles, two_sum

WIDTH: Final = 40
LOWEST_EXPONENT: Final = -1074
TOP: Final = 51
"""Highest bin; with a unit of 2**966 it has room for sums up to 2**1019, far beyond what may be added."""


def pieces(values: Doubles, work: Doubles) -> Iterator[tuple[int, Doubles]]:
    """Cut the values into (bin, pieces), from the highest bin down; ``values`` and the pieces' buffer are
    overwritten.
    """
    largest = max(float(values.max()), -float(values.min())) if values.size else 0.0
    if not largest:
        return
    index = min(TOP, max(0, -((LOWEST_EXPONENT + WIDTH - 1 - math.frexp(largest)[1]) // WIDTH)))
    while True:
        take_multiples(values, index, work)
        if work.any():
            yield index, work
        if not values.any():
            return
        index -= 1


def take_multiples(values: Doubles, index: int, taken: Doubles) -> None:
    """Move the nearest multiple of the bin's unit from values to taken; values are below 2**51 units."""
    magic = math.ldexp(1.5, 52 + LOWEST_EXPONENT + WIDTH * index)
    np.add(values, magic, out=taken)
    np.subtract(taken, magic, out=taken)
    np.subtract(values, taken, out=values)


def leading(parts: list[Doubles]) -> tuple[Doubles, Doubles, Doubles]:
    """The exact sum of the parts as (high, low, rest): high + low to 106 bits, and an array with the sign
    of what is left.

    Low is at most about half a unit in the last place of high, and the rest less than one unit in the last
    place of low.
    """
    found = digits(parts)
    high, low, rest = (np.zeros(parts[0].size) for _ in range(3))
    for index in sorted(found, reverse=True):
        high, error = two_sum(high, found[index])
        low, left = two_sum(low, error)
        high, low = two_sum(high, low)
        # Where something is left already, all further digits together are smaller: they change neither its
        # sign nor high and low.
        low, rest = two_sum(low, np.where(rest == 0.0, left, rest))
    return high, low, rest


def digits(parts: list[Doubles]) -> dict[int, Doubles]:
    """The sum in bins, each at most half a unit of the bin above."""
    found: dict[int, Doubles] = {}
    work = np.empty(parts[0].size)
    for part in parts:
        for index, piece in pieces(part.copy(), work):
            _deposit(found, index, piece)
    for index in range(min(found, default=TOP), TOP):
        if index in found:
            take_multiples(found[index], index + 1, work)
            if work.any():
                _deposit(found, index + 1, work)
    return found


def _deposit(bins: dict[int, Doubles], index: int, piece: Doubles) -> None:
    if index in bins:
        np.add(bins[index], piece, out=bins[index])
    else:
        bins[index] = piece.copy()
