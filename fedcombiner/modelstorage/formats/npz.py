"""Models as npz archives: reading what a model consists of, and checking an update completely before it is
used.

Memory is a few MiB whatever the size of the model: files are read into small buffers and never mapped,
because resident mapped pages count as memory of the process.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from fedcombiner.modelstorage.formats.members import PIECE_BYTES, MemberReader, array_name
from fedcombiner.modelstorage.formats.spec import Block, FormatError, ModelSpec, TensorSpec, quoted
from fedcombiner.modelstorage.formats.transpose import transpose_file, write_all
from fedcombiner.modelstorage.formats.writer import NpzWriter, write_model
from fedcombiner.modelstorage.formats.zipdir import Member, read_members

__all__ = ["MAX_MAGNITUDE", "CheckedUpdate", "NpzWriter", "check_update", "read_spec", "write_model"]

MAX_MAGNITUDE: Final = 2.0**960
"""Larger float64 values are refused, also where the parent has float64 or integers: weighted sums of them
could overflow, and a sum that overflowed is not exact.
"""

_SURPLUS_ENTRIES: Final = 1000
"""How many arrays beyond the parent's are read, for a refusal to name some; more would cost too much."""

_BLOB_DTYPE: Final = np.dtype("<f4")
_ARCHIVE: Final = b"PK\x03\x04"


def read_spec(path: str | os.PathLike[str]) -> ModelSpec:
    """The arrays of an npz file, in file order; reads headers only.

    Raises FormatError (``not_a_model``, ``dtype``, ``shape`` or ``too_large``) when the file is not a plain
    npz of numeric arrays; OSError when it cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        members = read_members(file.fileno())
        if not members:
            raise FormatError("not_a_model", "the archive holds no array")
        return ModelSpec(tuple(MemberReader(file.fileno(), member).tensor for member in members))


@dataclass(frozen=True, slots=True)
class _Segment:
    """Where the elements of one tensor are, in C order and native byte order, and the dtype they are read
    as.
    """

    file: IO[bytes]
    offset: int
    dtype: np.dtype[Any]
    elements: int
    reads: np.dtype[Any]


class CheckedUpdate:
    """An update in which every byte has been checked; close it to free its scratch file.

    Holds the file open, which must not change meanwhile. May be read any number of times, also from several
    threads.
    """

    def __init__(
        self, parent: ModelSpec, files: tuple[IO[bytes], ...], segments: tuple[_Segment, ...]
    ) -> None:
        self.parent: Final = parent
        self._files = files
        self._segments = segments

    @property
    def dtypes(self) -> tuple[np.dtype[Any], ...]:
        """Dtypes that the update's arrays are read as, in the parent's order."""
        return tuple(segment.reads for segment in self._segments)

    def blocks(self, block_elements: int) -> Iterator[Block]:
        """The elements, tensor by tensor in the parent's order, in C order, in runs of at most
        ``block_elements``.

        The array of a block has the update's dtype, or the parent's where the update has floating point
        numbers of more digits (`TensorSpec.reads`). It is valid until the next block is asked for: the buffer
        is used again.
        """
        buffer, rounded = bytearray(block_elements * 8), bytearray(block_elements * 4)
        for index, segment in enumerate(self._segments):
            for start in range(0, segment.elements, block_elements):
                count = min(block_elements, segment.elements - start)
                size = segment.dtype.itemsize
                target = memoryview(buffer)[: count * size]
                if os.preadv(segment.file.fileno(), [target], segment.offset + start * size) != len(target):
                    raise OSError("the file of a checked update was cut off")
                values = np.frombuffer(target, segment.dtype)
                yield index, start, _rounded(values, segment.reads, rounded)

    def close(self) -> None:
        """Close the files; the scratch file vanishes with it. Closing again does nothing."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def check_update(path: str | os.PathLike[str], parent: ModelSpec, scratch_dir: Path) -> CheckedUpdate:
    """Decode and check a whole update: names and shapes are the parent's, every value is finite, lengths
    and CRC-32 are right.

    The dtypes need not be the parent's, but floating point numbers must be in the range of the parent's.
    Arrays that cannot be read from the file as they are (deflated, in Fortran order, in foreign byte order)
    are kept in one unnamed scratch file, as they are read: where the parent has floating point numbers that
    is at most twice its size, else 16 bytes an element. Nothing is inflated beyond what the parent's shapes
    allow, and nothing is unpickled.

    A file without an archive's beginning that has exactly the bytes of the parent's arrays as float32 is a
    blob (`formats.blob`), and read as such.

    Raises FormatError with the reason for the first thing found wrong, headers of all arrays before their
    content; OSError when the file cannot be read or the scratch file cannot be written.
    """
    update = open(path, "rb", buffering=0)  # noqa: SIM115  # the CheckedUpdate owns it
    if _is_blob(update, parent):
        return _checked_blob(update, parent)
    scratch = tempfile.TemporaryFile(dir=scratch_dir, buffering=0)  # noqa: SIM115
    try:
        segments = _Checker(update, scratch).check(parent)
    except BaseException:
        update.close()
        scratch.close()
        raise
    return CheckedUpdate(parent, (update, scratch), segments)


def _is_blob(update: IO[bytes], parent: ModelSpec) -> bool:
    size = os.fstat(update.fileno()).st_size
    return (
        size == parent.elements * _BLOB_DTYPE.itemsize > 0
        and parent.fits_a_blob
        and os.pread(update.fileno(), len(_ARCHIVE), 0) != _ARCHIVE
    )


def _checked_blob(update: IO[bytes], parent: ModelSpec) -> CheckedUpdate:
    try:
        segments = tuple(
            _Segment(
                update,
                offset * _BLOB_DTYPE.itemsize,
                _BLOB_DTYPE,
                tensor.elements,
                tensor.reads(_BLOB_DTYPE),
            )
            for offset, tensor in zip(parent.offsets, parent.tensors, strict=True)
        )
        unrounded = tuple(replace(segment, reads=_BLOB_DTYPE) for segment in segments)
        raw = CheckedUpdate(parent, (update,), unrounded)
        for index, start, values in raw.blocks(PIECE_BYTES // _BLOB_DTYPE.itemsize):
            _check_values(parent.tensors[index], start, values)
    except BaseException:
        update.close()
        raise
    return CheckedUpdate(parent, (update,), segments)


class _Checker:
    def __init__(self, update: IO[bytes], scratch: IO[bytes]) -> None:
        self._update = update
        self._scratch = scratch
        self._scratch_end = 0
        self._piece, self._rounded = bytearray(PIECE_BYTES), bytearray(PIECE_BYTES)

    def check(self, parent: ModelSpec) -> tuple[_Segment, ...]:
        most = len(parent.tensors) + _SURPLUS_ENTRIES
        members = {array_name(member): member for member in read_members(self._update.fileno(), most)}
        _check_names(members.keys(), {tensor.name for tensor in parent.tensors})
        # All headers before any content: a wrong update is mostly found without reading it.
        for tensor in parent.tensors:
            _check_shape(MemberReader(self._update.fileno(), members[tensor.name]).tensor, tensor)
        return tuple(self._check_payload(members[tensor.name], tensor) for tensor in parent.tensors)

    def _check_payload(self, member: Member, expected: TensorSpec) -> _Segment:
        reader = MemberReader(self._update.fileno(), member)
        tensor = reader.tensor
        reads = expected.reads(tensor.dtype)
        foreign = not reader.stored_dtype.isnative
        transposed = reader.fortran_order and sum(length != 1 for length in tensor.shape) > 1
        in_place = not member.deflated and not foreign and not (transposed and reads != tensor.dtype)
        dtype = tensor.dtype if in_place else reads
        size = tensor.elements * dtype.itemsize
        offset = reader.payload_offset if in_place else self._reserve(size)
        for start, values in self._pieces(reader):
            _check_values(expected, start, values)
            if not in_place:
                kept = _rounded(values, reads, self._rounded)
                write_all(self._scratch.fileno(), kept.data.cast("B"), offset + start * dtype.itemsize)
        reader.finish()
        file = self._update if in_place else self._scratch
        if transposed:
            source = (file.fileno(), offset)
            file, offset = self._scratch, self._reserve(size)
            transpose_file(source, (file.fileno(), offset), tensor.shape, dtype)
        return _Segment(file, offset, dtype, tensor.elements, reads)

    def _pieces(self, reader: MemberReader) -> Iterator[tuple[int, NDArray[Any]]]:
        tensor = reader.tensor
        per_piece = len(self._piece) // tensor.dtype.itemsize
        for start in range(0, tensor.elements, per_piece):
            count = min(per_piece, tensor.elements - start)
            target = memoryview(self._piece)[: count * tensor.dtype.itemsize]
            reader.readinto(target)
            values = np.frombuffer(target, tensor.dtype)
            if not reader.stored_dtype.isnative:
                values.byteswap(inplace=True)
            yield start, values

    def _reserve(self, size: int) -> int:
        offset = self._scratch_end
        self._scratch_end += size
        return offset


def _check_names(found: Set[str], expected: Set[str]) -> None:
    missing, surplus = expected - found, found - expected
    if missing or surplus:
        parts = [f"missing {quoted(missing)}"] if missing else []
        parts += [f"not in the parent {quoted(surplus)}"] if surplus else []
        raise FormatError("names", "array names must be the parent's: " + "; ".join(parts))


def _check_shape(found: TensorSpec, expected: TensorSpec) -> None:
    if found.shape != expected.shape:
        shapes = f"has shape {str(found.shape)[:200]}, the parent's is {expected.shape}"
        raise FormatError("shape", f"array {quoted([found.name])} {shapes}")


def _rounded(values: NDArray[Any], dtype: np.dtype[Any], buffer: bytearray) -> NDArray[Any]:
    """The values as this dtype, in the buffer if they are of another one; to nearest, ties to even."""
    if values.dtype == dtype:
        return values
    rounded = np.frombuffer(memoryview(buffer)[: values.size * dtype.itemsize], dtype)
    np.copyto(rounded, values, casting="same_kind")
    return rounded


def _check_values(expected: TensorSpec, start: int, values: NDArray[Any]) -> None:
    """Refuse NaN, infinities, and magnitudes above MAX_MAGNITUDE or beyond the range of the parent's array;
    ``start`` is the flat index in file order of the first value.
    """
    if values.dtype.kind != "f":
        return
    with np.errstate(invalid="ignore"):
        # Two reductions see all there is to see: both hand on NaN, and neither needs a temporary array.
        low, high = float(values.min()), float(values.max())
    limit, allowed = MAX_MAGNITUDE, "the largest allowed magnitude is 2**960"
    if expected.reads(values.dtype) != values.dtype:
        limit = float(np.finfo(expected.dtype).max)
        allowed = f"the largest {expected.dtype} of the parent's array is {limit!r}"
    if low >= -limit and high <= limit:
        return
    finite = np.isfinite(values)
    position = int(np.argmin(finite)) if not finite.all() else int(np.argmax(np.abs(values)))
    value = float(values[position])
    where = f"array {quoted([expected.name])} has {value!r} at flat index {start + position}"
    if not np.isfinite(value):
        raise FormatError("non_finite", f"{where}, every value must be finite")
    raise FormatError("too_large", f"{where}, {allowed}")
