"""Dividing an exact sum and rounding it to a dtype, once and correctly (to nearest, ties to even)."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from combiner.aggregation.bins import leading
from combiner.aggregation.twosum import Doubles, divide_to_odd, remainder, round_to_odd, two_sum

MAX_TOTAL: Final = (1 << 50) - 1
"""Up to this divisor, 106 bits of the sum and the sign of the rest decide every rounding.

The midpoint of two float64 neighbours has 54 bits; times 50 bits of divisor it is still an even multiple of
the sum's last place.
"""

_BELOW: Final = 1.0 - 2.0**-50
_ABOVE: Final = 1.0 + 2.0**-50
_ERROR_OF_64_PARTS: Final = 2.0**-46
_TINY: Final = 2.0**-840
_EXACT_INTEGERS: Final = 2.0**51
_BEYOND_64_BITS: Final = 2.0**65


class Divider:
    """Rounds means of blocks of at most ``block_elements``; its buffers are used again for every block."""

    def __init__(self, block_elements: int) -> None:
        self._quotient, self._end, self._other = (np.empty(block_elements) for _ in range(3))
        self._differs = np.empty(block_elements, np.bool_)

    def mean_of_pairs(self, high: Doubles, low: Doubles, total: int, out: NDArray[Any]) -> None:
        """Set out to (high + low) / total; high and low are a sum exactly, in any relation of size.

        Nearly all elements are settled by one division in float64 and its error interval, both ends of
        which round to the same number (Ziv's test). The others are divided exactly.
        """
        if out.dtype == np.float64:
            doubtful = self._quick_doubles(high, low, total, out)
        else:
            doubtful = self._quick(high, low, total, out)
        if doubtful.size:
            out[doubtful] = mean_of_parts([high[doubtful], low[doubtful]], total, out.dtype)

    def _quick(self, high: Doubles, low: Doubles, total: int, out: NDArray[Any]) -> NDArray[np.intp]:
        quotient, end = self._quotient[: high.size], self._end[: high.size]
        np.add(high, low, out=quotient)
        np.divide(quotient, float(total), out=quotient)
        other = self._other.view(out.dtype)[: high.size]
        narrow(np.multiply(quotient, _BELOW, out=end), out)
        narrow(np.multiply(quotient, _ABOVE, out=end), other)
        return self._differing(out, other)

    def _quick_doubles(self, high: Doubles, low: Doubles, total: int, out: Doubles) -> NDArray[np.intp]:
        end, other = self._end[: high.size], self._other[: high.size]
        high, low = two_sum(high, low)
        quotient = np.divide(high, float(total), out=self._quotient[: high.size])
        correction = remainder(high, quotient, total)
        correction += low
        correction /= float(total)
        np.add(quotient, np.multiply(correction, _BELOW, out=end), out=out)
        np.add(quotient, np.multiply(correction, _ABOVE, out=end), out=other)
        # The remainder of a tiny quotient may have been rounded.
        np.copyto(other, np.nan, where=(np.abs(high, out=end) < _TINY) & (high != 0.0))
        return self._differing(out, other)

    def _differing(self, one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.intp]:
        return np.flatnonzero(np.not_equal(one, other, out=self._differs[: one.size]))


def mean_of_many(parts: list[Doubles], total: int, out: NDArray[Any]) -> None:
    """Set out to the sum of the parts (two at least, at most 64), divided by the total.

    As in ``mean_of_pairs``, most elements need no more than an error interval; for float64 there is none that
    could settle anything.
    """
    if out.dtype == np.float64:
        out[:] = mean_of_parts(parts, total, out.dtype)
        return
    approximation, error = np.zeros(out.size), np.zeros(out.size)
    for part in parts:
        approximation += part
        error += np.abs(part)
    error *= _ERROR_OF_64_PARTS
    other = np.empty_like(out)
    narrow((approximation - error) / float(total), out)
    narrow((approximation + error) / float(total), other)
    # Both ends may round to zero, which one tells only the sign of the exact sum.
    doubtful = np.flatnonzero((out != other) | (np.abs(approximation) <= error))
    if doubtful.size:
        out[doubtful] = mean_of_parts([part[doubtful] for part in parts], total, out.dtype)


def mean_of_parts(parts: list[Doubles], total: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The sum of the parts (two at least), divided by the total and rounded to the dtype."""
    if len(parts) == 2:
        high, low = two_sum(parts[0], parts[1])
    else:
        high, low, rest = leading(parts)
        low = round_to_odd(low, rest)
    result = np.empty(high.size, dtype)
    if dtype == np.float64:
        result[:] = _nearest_double(high, low, total)
        hard = np.abs(high) < _TINY
    else:
        quotient = divide_to_odd(high, low, total)
        hard = _beyond_doubles(np.abs(quotient), dtype)
        narrow(quotient, result)
    for index in np.flatnonzero(hard):
        exact = sum((Fraction(float(part[index])) for part in parts), Fraction()) / total
        result[index] = float(exact) if dtype.kind == "f" else _saturated(round(exact), dtype)
    return result


def narrow(values: Doubles, out: NDArray[Any]) -> None:
    """Round to the dtype of out; what lies beyond its range becomes its last finite value. ``values`` is
    overwritten.
    """
    if out.dtype.kind == "b":
        np.greater(np.rint(values, out=values), 0.0, out=out)
        return
    if out.dtype.kind == "f":
        lowest, highest = float(np.finfo(out.dtype).min), float(np.finfo(out.dtype).max)
    else:
        limits = np.iinfo(out.dtype)
        lowest, highest = float(limits.min), float(limits.max)
        np.rint(values, out=values)
    if not values.size or (values.min() >= lowest and values.max() < highest):
        np.copyto(out, values, casting="unsafe")
        return
    # The highest 64-bit integers are no float64 numbers, and converting the next one above would be
    # undefined.
    above = values >= highest
    np.clip(values, lowest, np.nextafter(highest, 0.0), out=values)
    np.copyto(out, values, casting="unsafe")
    out[above] = np.finfo(out.dtype).max if out.dtype.kind == "f" else np.iinfo(out.dtype).max


def _nearest_double(high: Doubles, low: Doubles, total: int) -> Doubles:
    quotient = high / float(total)
    upper, lower = two_sum(remainder(high, quotient, total), low)
    quotient += divide_to_odd(upper, lower, total)
    return quotient


def _beyond_doubles(size: Doubles, dtype: np.dtype[Any]) -> NDArray[np.bool_]:
    """Whether a mean of this size, rounded to odd in 53 bits, may be too coarse for the dtype, which only
    64 bits are.
    """
    wide = dtype.kind in "iu" and dtype.itemsize == 8
    return wide & (size >= _EXACT_INTEGERS) & (size < _BEYOND_64_BITS)


def _saturated(value: int, dtype: np.dtype[Any]) -> int:
    limits = np.iinfo(dtype)
    return min(max(value, int(limits.min)), int(limits.max))
