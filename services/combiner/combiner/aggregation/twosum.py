"""Error-free transformations of float64 arrays: what rounding takes away is kept.

Sources: Knuth, The Art of Computer Programming 2, 4.2.2 (two_sum); Dekker, "A floating-point technique for
extending the available precision", 1971 (products by splitting); Boldo and Melquiond, "Emulation of FMA and
correctly rounded sums: proved algorithms using rounding to odd", 2008 (round_to_odd). All need
round-to-nearest and results that do not overflow.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Doubles: TypeAlias = NDArray[np.float64]

SIGNIFICANT_BITS: Final = 53
_UPPER_26_BITS: Final = np.int64(-(1 << 27))
_LOWER_25_BITS: Final = (1 << 25) - 1


def add_in_place(total: Doubles, term: Doubles, work: Doubles, spare: Doubles) -> None:
    """Set ``total`` to the rounded total + term and ``term`` to the error, exactly; both works are
    overwritten.
    """
    np.add(total, term, out=work)
    np.subtract(work, total, out=spare)
    np.subtract(term, spare, out=term)
    np.subtract(work, spare, out=spare)
    np.subtract(total, spare, out=spare)
    np.add(term, spare, out=term)
    np.copyto(total, work)


def two_sum(a: Doubles, b: Doubles) -> tuple[Doubles, Doubles]:
    """The rounded a + b and its error: together exactly a + b."""
    total = a + b
    shadow = total - a
    return total, (a - (total - shadow)) + (b - shadow)


def remainder(dividend: Doubles, quotient: Doubles, divisor: int) -> Doubles:
    """dividend - quotient * divisor, exactly, for a quotient within three units in the last place and a
    divisor up to 2**50.

    The quotient is split into 26 and 27 bits, the divisor into 25 and 25, so that all four products are
    exact. Quotients below 2**-900 may give an inexact result.
    """
    upper = (quotient.view(np.int64) & _UPPER_26_BITS).view(np.float64)
    lower = quotient - upper
    low = float(divisor & _LOWER_25_BITS)
    high = float(divisor) - low
    product = quotient * float(divisor)
    error = lower * low - (((product - upper * high) - lower * high) - upper * low)
    difference: Doubles = (dividend - product) - error
    return difference


def round_to_odd(values: Doubles, rest: Doubles) -> Doubles:
    """Round values + rest to odd, where the rest is known by its sign and is less than one unit in the last
    place.

    What is rounded to odd here can be rounded to nearest at any coarser place, later, as if it had never
    been rounded.
    """
    even = (values.view(np.int64) & 1) == 0
    step = np.where(even, np.sign(rest) * np.sign(values), 0.0).astype(np.int64)
    return (values.view(np.int64) + step).view(np.float64)


def divide_to_odd(high: Doubles, low: Doubles, divisor: int) -> Doubles:
    """(high + low) / divisor rounded to odd; low is at most about half a unit in the last place of high."""
    first = high / divisor
    quotient = first + (remainder(high, first, divisor) + low) / divisor
    # The first quotient may be off by more than one unit, the corrected one is off by half a unit: its
    # rest's sign says all.
    return round_to_odd(quotient, remainder(high, quotient, divisor) + low)
