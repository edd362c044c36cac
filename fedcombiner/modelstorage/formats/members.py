"""The bytes of one archive entry as a stream that is checked to its last byte, and the npy header at its
start.
"""

from __future__ import annotations

import os
import threading
import tokenize
from typing import Any, Final, Protocol

import numpy as np
from isal import isal_zlib
from numpy.lib import format as npy

from fedcombiner.modelstorage.formats.spec import READABLE_DTYPES, FormatError, Reason, TensorSpec, quoted
from fedcombiner.modelstorage.formats.zipdir import Member

_InflateError: Final[type[Exception]] = isal_zlib.error  # type: ignore[assignment]  # its stub errs

PIECE_BYTES: Final = 1 << 20
_INPUT_BYTES: Final = 256 << 10
_MAX_DEFLATE_RATIO: Final = 1032
_MAX_HEADER_BYTES: Final = 10_000  # as numpy.load
_MAX_DIMENSIONS: Final = 32
_MAX_NBYTES: Final = 1 << 62
# numpy parses headers with `ast`, and Python 3.11 counts the depth of that in one place for all threads: it
# raises SystemError when another thread has parsed in between, as the garbage collector may let it.
_PARSING: Final = threading.Lock()


class _Source(Protocol):
    def read(self, limit: int) -> bytes:
        """At least one and at most ``limit`` bytes; empty only at the end."""

    def exhausted(self) -> bool:
        """Whether the entry's compressed bytes ended exactly where its content did."""

    def readinto(self, target: memoryview) -> int: ...


class _Stored:
    def __init__(self, fd: int, member: Member) -> None:
        self._fd, self._at, self._end = fd, member.offset, member.offset + member.size

    def readinto(self, target: memoryview) -> int:
        target = target[: self._end - self._at]
        count = os.preadv(self._fd, [target], self._at) if target else 0
        self._at += count
        return count

    def read(self, limit: int) -> bytes:
        data = os.pread(self._fd, min(limit, self._end - self._at), self._at)
        self._at += len(data)
        return data

    def exhausted(self) -> bool:
        return self._at == self._end


class _Inflated:
    def __init__(self, fd: int, member: Member) -> None:
        self._fd, self._at, self._end = fd, member.offset, member.offset + member.compressed_size
        self._shown = quoted([member.name])
        self._inflater = isal_zlib.decompressobj(-15)

    def readinto(self, target: memoryview) -> int:
        data = self.read(len(target))
        target[: len(data)] = data
        return len(data)

    def read(self, limit: int) -> bytes:
        while not self._inflater.eof:
            compressed = self._inflater.unconsumed_tail
            if not compressed:
                compressed = os.pread(self._fd, min(_INPUT_BYTES, self._end - self._at), self._at)
                self._at += len(compressed)
            try:
                data: bytes = self._inflater.decompress(compressed, limit)
            except _InflateError as error:
                raise FormatError(
                    "not_a_model", f"entry {self._shown} cannot be inflated: {error}"
                ) from error
            if data or not compressed:
                return data
        return b""

    def exhausted(self) -> bool:
        return bool(self._inflater.eof and self._at == self._end and not self._inflater.unused_data)


class MemberReader:
    """Reads the array in one entry: ``tensor`` first, from the npy header, then the payload in order.

    Never gives out, and never inflates, more than the header's shape allows. ``finish`` must be called
    after the payload: only then are length and CRC-32 known to be right.

    Raises FormatError: ``not_a_model`` for a broken entry, ``dtype`` for arrays that cannot be averaged,
    ``shape`` for impossible shapes, ``too_large`` for an entry that holds more than its shape allows.
    """

    def __init__(self, fd: int, member: Member) -> None:
        self._member = member
        self._shown = quoted([array_name(member)])
        self._source: _Source = _Inflated(fd, member) if member.deflated else _Stored(fd, member)
        self._crc = 0
        self._header_bytes = 0
        self.stored_dtype: np.dtype[Any]
        self.fortran_order: bool
        self.tensor = self._read_header()

    @property
    def payload_offset(self) -> int:
        """Where in the file the payload of a stored entry starts."""
        return self._member.offset + self._header_bytes

    def readinto(self, target: memoryview) -> None:
        """Fill the whole target with the next bytes of the payload."""
        filled = 0
        while filled < len(target):
            count = self._source.readinto(target[filled:])
            if not count:
                raise self._error("not_a_model", f"ends {len(target) - filled} bytes early")
            filled += count
        self._crc = isal_zlib.crc32(target, self._crc)

    def finish(self) -> None:
        """Check that the payload ended here, and its CRC-32."""
        if self._source.read(1):
            allowed = f"{self.tensor.nbytes} bytes of shape {self.tensor.shape} {self.tensor.dtype}"
            raise self._error("too_large", f"holds more than the {allowed}")
        if not self._source.exhausted():
            raise self._error("not_a_model", "has bytes after the end of its data")
        if self._crc != self._member.crc:
            raise self._error("not_a_model", f"has CRC-32 {self._crc:08x}, expected {self._member.crc:08x}")

    def read(self, size: int = 0, /) -> bytes:
        """The next ``size`` bytes; numpy's header parser calls this, with a length that the file chose."""
        if size > _MAX_HEADER_BYTES:
            allowed = f"allowed are {_MAX_HEADER_BYTES}"
            raise self._error("not_a_model", f"has an npy header of {size} bytes, {allowed}")
        data = bytearray(size)
        self.readinto(memoryview(data))
        self._header_bytes += size
        return bytes(data)

    def _error(self, reason: Reason, text: str) -> FormatError:
        return FormatError(reason, f"array {self._shown} {text}")

    def _read_header(self) -> TensorSpec:
        shape, self.fortran_order, stored_dtype = self._parse_header()
        self.stored_dtype = stored_dtype
        dtype = stored_dtype.newbyteorder("=")
        if dtype not in READABLE_DTYPES:
            allowed = "allowed are bool, int8 to int64, uint8 to uint64, float16, float32 and float64"
            raise self._error("dtype", f"has dtype {str(stored_dtype)[:80]}, {allowed}")
        if any(length < 0 for length in shape) or len(shape) > _MAX_DIMENSIONS:
            raise self._error("shape", f"has the impossible shape {str(shape)[:200]}")
        tensor = TensorSpec(array_name(self._member), dtype, tuple(int(length) for length in shape))
        self._check_size(tensor)
        return tensor

    def _parse_header(self) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        try:
            version = npy.read_magic(self)
            with _PARSING:
                if version == (1, 0):
                    return npy.read_array_header_1_0(self)
                if version == (2, 0):
                    return npy.read_array_header_2_0(self)
        # What numpy's header parser raises for hostile text, beside ValueError, is not documented: these
        # were found by trying.
        except (
            ValueError,
            TypeError,
            KeyError,
            SyntaxError,
            tokenize.TokenError,
            RecursionError,
            MemoryError,
            OverflowError,
        ) as error:
            raise self._error("not_a_model", f"has no valid npy header: {str(error)[:200]}") from error
        raise self._error("not_a_model", f"has npy version {version}, allowed are 1.0 and 2.0")

    def _check_size(self, tensor: TensorSpec) -> None:
        if tensor.nbytes >= _MAX_NBYTES:
            raise self._error("shape", f"has the impossible shape {str(tensor.shape)[:200]}")
        expected = self._header_bytes + tensor.nbytes
        if self._member.size > expected:
            raise self._error(
                "too_large", f"has {self._member.size} bytes, its shape {tensor.shape} needs {expected}"
            )
        if self._member.size < expected or expected > self._member.compressed_size * _MAX_DEFLATE_RATIO:
            raise self._error("not_a_model", f"is cut off: its shape {tensor.shape} needs {expected} bytes")


def array_name(member: Member) -> str:
    """Name of the array in an entry; FormatError (``not_a_model``) when the entry is none."""
    name = member.name.removesuffix(".npy")
    if name == member.name:
        raise FormatError("not_a_model", f"entry {quoted([member.name])} is not an npy array")
    return name
