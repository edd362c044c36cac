"""Models without a header: the arrays as float32, little-endian, one after the other in C order.

What a blob consists of only its parent tells: names and shapes are the parent's, in the order of its file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from fedcombiner.modelstorage.formats.npz import check_update, read_spec
from fedcombiner.modelstorage.formats.spec import FormatError

_RUN_ELEMENTS: Final = 1 << 18  # a mebibyte


def blob_of(path: str | os.PathLike[str], scratch_dir: Path) -> Iterator[bytes]:
    """The blob of an npz file, in parts of at most a mebibyte.

    Raises:
        FormatError: it is no archive that could be averaged, or its numbers are not of floating point.
        OSError: the file cannot be read, or scratch space is short.
    """
    spec = read_spec(path)
    if not spec.fits_a_blob:
        raise FormatError("dtype", "a blob of float32 holds arrays of floating point numbers only")
    with check_update(path, spec, scratch_dir) as checked:
        for _, _, values in checked.blocks(_RUN_ELEMENTS):
            with np.errstate(over="ignore"):  # what is too large for float32 is infinite there
                part = values.astype("<f4").tobytes()
            yield part
