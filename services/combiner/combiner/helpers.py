"""Helpers: how a model in memory becomes a file and back, as FEDn's helper objects do it.

Any object with `load` and `save` as here is a helper, those of FEDn's own plugins too. Ours read and write
npz files without ever unpickling: `NpzDictHelper` for arrays by name (a PyTorch state dict), `NpzListHelper`
for arrays by position (Keras weights).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedcombiner.modelstorage.formats.arrays import load_arrays, save_arrays
from fedcombiner.servicekit.errors import InvalidArgument

Array: TypeAlias = NDArray[Any]


class Helper(Protocol):
    """What the combiner asks of a helper. Both methods block."""

    def load(self, path: str) -> Any:
        """The model in the file `path`."""

    def save(self, model: Any, path: str | None = None) -> str | None:
        """Write the model to `path`, to a new temporary file without one; says where it is, if elsewhere."""


class NpzDictHelper:
    """Models as dicts of arrays by name, in the order of the file."""

    def load(self, path: str) -> dict[str, Array]:
        """The arrays of an npz file. Raises ValueError or zipfile.BadZipFile when it is none."""
        return load_arrays(path)

    def save(self, model: Mapping[str, ArrayLike], path: str | None = None) -> str:
        """Write an uncompressed npz file, to a new temporary one without a path, and return its path."""
        target = path or temporary_path()
        save_arrays(target, model)
        return target


class NpzListHelper:
    """Models as lists of arrays; in the file their names are their positions, from "0" on."""

    def load(self, path: str) -> list[Array]:
        """The arrays of an npz file by position.

        Raises ValueError when their names are not the positions, or it is no npz file (or
        zipfile.BadZipFile).
        """
        arrays = load_arrays(path)
        names = [str(index) for index in range(len(arrays))]
        if set(names) != arrays.keys():
            raise ValueError(f"arrays named {sorted(arrays)[:5]}; allowed: '0' to '{len(arrays) - 1}'")
        return [arrays[name] for name in names]

    def save(self, model: Sequence[ArrayLike], path: str | None = None) -> str:
        """Write an uncompressed npz file, to a new temporary one without a path, and return its path."""
        target = path or temporary_path()
        save_arrays(target, [np.asarray(array) for array in model])
        return target


_HELPERS: Final[Mapping[str, Callable[[], NpzDictHelper | NpzListHelper]]] = MappingProxyType(
    {"kerashelper": NpzListHelper, "numpyhelper": NpzListHelper, "pytorchhelper": NpzDictHelper}
)


def get_helper(helper_type: str) -> NpzDictHelper | NpzListHelper:
    """Our helper for the files of FEDn's helper of that name.

    Raises:
        InvalidArgument: there is none.
    """
    make = _HELPERS.get(helper_type)
    if make is None:
        raise InvalidArgument("helper_type", helper_type, ", ".join(_HELPERS))
    return make()


def temporary_path() -> str:
    """A new empty file, whose name ends as `numpy.savez` wants it to; the caller removes it."""
    descriptor, path = tempfile.mkstemp(suffix=".npz")
    os.close(descriptor)
    return path
