"""What a model consists of: named arrays, each with a dtype and a shape."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Reason: TypeAlias = Literal["not_a_model", "non_finite", "shape", "names", "dtype", "too_large"]

Block: TypeAlias = tuple[int, int, NDArray[Any]]
"""A flat run of one tensor: index of the tensor in the model, index of the first element, the elements in
C order.
"""

READABLE_DTYPES: Final = frozenset(
    np.dtype(code) for code in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
)
"""The dtypes of models and updates, in native byte order."""


_WIDEST_BYTES: Final = 8
_HEADER_BYTES: Final = 1024
"""For one array: two headers of the archive and one of npy, which holds the shape."""
_SLACK_BYTES: Final = 1 << 20


class FormatError(Exception):
    """The bytes are not an acceptable model; ``reason`` is one of the reasons an update is rejected for."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One array of a model: its name, its dtype (native byte order) and its shape."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize

    def reads(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """The dtype that values of an update for this array are rounded to before anything else: floating
        point numbers have no more digits and range than the array can hold.
        """
        narrower = dtype.kind == self.dtype.kind == "f" and self.dtype.itemsize < dtype.itemsize
        return self.dtype if narrower else dtype


@dataclass(frozen=True)
class ModelSpec:
    """The arrays of a model, in the order in which its file holds them."""

    tensors: tuple[TensorSpec, ...]

    @cached_property
    def elements(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    @cached_property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @cached_property
    def max_update_bytes(self) -> int:
        """Size of the largest file that an update of this model can need: every element a float64,
        incompressible, and headers.
        """
        payload = self.elements * _WIDEST_BYTES
        names = sum(len(tensor.name.encode()) for tensor in self.tensors)
        headers = _HEADER_BYTES * len(self.tensors) + 2 * names
        return payload + payload // 1024 + headers + _SLACK_BYTES

    @cached_property
    def is_list(self) -> bool:
        """Named by position, as FEDn's helpers for keras and numpy do; else it is a dict."""
        names = {tensor.name for tensor in self.tensors}
        return names == {str(number) for number in range(len(self.tensors))}

    @cached_property
    def fits_a_blob(self) -> bool:
        """Every array is of floating point numbers, so float32 can carry it."""
        return all(tensor.dtype.kind == "f" for tensor in self.tensors)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Index of each tensor's first element when all tensors are laid end to end."""
        offsets, end = [], 0
        for tensor in self.tensors:
            offsets.append(end)
            end += tensor.elements
        return tuple(offsets)


def quoted(names: Iterable[str], limit: int = 5) -> str:
    """Names from a file as they may appear in a message: escaped, shortened and few."""
    every = sorted(names)
    shown = ", ".join(repr(name if len(name) <= 80 else name[:77] + "...") for name in every[:limit])
    return shown if len(every) <= limit else f"{shown} and {len(every) - limit} more"
