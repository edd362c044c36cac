"""Rounding by definition, for what is compared with fractions.Fraction."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np


def rounded(value: Fraction, dtype: np.dtype[Any]) -> Any:
    """Round a fraction to the dtype by definition: the nearest of its neighbours, the even one of two."""
    if dtype.kind == "b":
        return np.bool_(round(value) > 0)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return dtype.type(min(max(round(value), int(limits.min)), int(limits.max)))
    if dtype == np.float64:
        return np.float64(value.numerator / value.denominator)  # Python rounds this division correctly
    info = np.finfo(dtype)
    size, smallest = abs(value), Fraction(float(info.smallest_subnormal))
    exponent = int(info.minexp)
    while Fraction(2) ** (exponent + 1) <= size:
        exponent += 1
    unit = max(smallest, Fraction(2) ** (exponent - int(info.nmant)))
    nearest = min(float(round(size / unit) * unit), float(info.max))
    return dtype.type(-nearest if value < 0 else nearest)
