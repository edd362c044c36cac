"""Models as numpy arrays: `.npz` files, in the order and under the names that they were given."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

Arrays = dict[str, np.ndarray[Any, Any]]
"""Parameters by name, of any shape; the server takes bool, integers and float16, float32, float64."""


def read_arrays(source: Path | BinaryIO) -> Arrays:
    """All arrays of a `.npz` file, stored or deflated, in the order of the file.

    Raises:
        ValueError: it is no `.npz` file, or holds objects.
        OSError: it cannot be read.
    """
    try:
        with np.load(source, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, zipfile.BadZipFile, EOFError, TypeError, AttributeError) as error:
        raise ValueError(f"not a .npz file of arrays: {error}") from error


def write_arrays(target: Path | BinaryIO, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write an uncompressed `.npz` file.

    Not `numpy.savez`, which takes the names as keyword arguments and so cannot store an array called "file".

    Raises:
        ValueError: an array holds objects.
        OSError: the file cannot be written.
    """
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
