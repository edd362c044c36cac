"""The directory of a zip archive, read strictly and in bounded memory.

``zipfile`` reads whatever size of directory an archive claims to have and repairs what does not fit
together. Updates come from strangers, so here the size is bounded and whatever does not fit is refused.
Layout: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple

from fedcombiner.modelstorage.formats.spec import FormatError, quoted

MAX_DIRECTORY_BYTES: Final = 8 << 20
STORED: Final = 0
DEFLATED: Final = 8

_END: Final = struct.Struct("<4s4H2LH")
_END64_LOCATOR: Final = struct.Struct("<4sLQL")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_ENTRY: Final = struct.Struct("<4s4B4H3L5H2L")
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_MAX_COMMENT: Final = 0xFFFF
_FLAG_ENCRYPTED: Final = 0x1 | 0x40 | 0x2000
_FLAG_UTF8: Final = 0x800
_IN_ZIP64: Final = 0xFFFFFFFF
_ZIP64_EXTRA: Final = 1


class _Entry(NamedTuple):
    """The fixed part of a directory entry."""

    magic: bytes
    made_by: int
    made_on: int
    needs: int
    reserved: int
    flags: int
    method: int
    time: int
    date: int
    crc: int
    compressed_size: int
    size: int
    name_size: int
    extra_size: int
    comment_size: int
    disk: int
    internal_attributes: int
    external_attributes: int
    offset: int


@dataclass(frozen=True, slots=True)
class Member:
    """One entry: its name, its CRC-32, and where in the file its (perhaps compressed) bytes are."""

    name: str
    method: int
    crc: int
    compressed_size: int
    size: int
    offset: int

    @property
    def deflated(self) -> bool:
        return self.method == DEFLATED


def read_members(fd: int, most: int | None = None) -> tuple[Member, ...]:
    """List the entries of the archive in the file, in the order of the directory.

    Raises FormatError (``not_a_model``) for anything but a plain, undamaged archive of stored and deflated
    entries with distinct names, (``too_large``) for a directory above ``MAX_DIRECTORY_BYTES``, and
    (``names``) for more than ``most`` entries, of which no more are read.
    """
    start, size, count = _locate_directory(fd)
    if size > MAX_DIRECTORY_BYTES:
        raise FormatError(
            "too_large", f"the zip directory has {size} bytes, allowed are {MAX_DIRECTORY_BYTES}"
        )
    if most is not None and count > most:
        raise FormatError("names", f"the archive has {count} entries, allowed are {most}")
    listed = islice(_entries(read_at(fd, start, size)), count + 1)
    members = tuple(_member(fd, *entry, start) for entry in listed)
    if len(members) != count:
        found = len(members) if len(members) < count else f"more than {count}"
        raise FormatError("not_a_model", f"the zip directory lists {found} entries and claims {count}")
    _refuse_duplicates(members)
    return members


def read_at(fd: int, offset: int, size: int) -> bytes:
    """Exactly ``size`` bytes of the file; FormatError (``not_a_model``) when it ends before."""
    data = os.pread(fd, size, offset)
    if len(data) != size:
        raise FormatError("not_a_model", f"the file ends within the {size} bytes at {offset}")
    return data


def _locate_directory(fd: int) -> tuple[int, int, int]:
    file_size = os.fstat(fd).st_size
    tail_start = max(0, file_size - _END.size - _MAX_COMMENT)
    tail = read_at(fd, tail_start, file_size - tail_start)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise FormatError("not_a_model", f"the file of {file_size} bytes is not a zip archive")
    _, disk, first_disk, _, count, size, start, _ = _END.unpack_from(tail, at)
    end = tail_start + at
    if end >= _END64_LOCATOR.size:
        locator = read_at(fd, end - _END64_LOCATOR.size, _END64_LOCATOR.size)
        if locator.startswith(b"PK\x06\x07"):
            end = _END64_LOCATOR.unpack(locator)[2]
            magic, _, _, _, disk, first_disk, _, count, size, start = _END64.unpack(
                read_at(fd, end, _END64.size)
            )
            if magic != b"PK\x06\x06":
                raise FormatError("not_a_model", "the zip archive has a broken zip64 directory")
    if disk or first_disk or start + size != end:
        raise FormatError("not_a_model", "the zip directory does not end where its end record says")
    return start, size, count


def _entries(directory: bytes) -> Iterator[tuple[_Entry, bytes, bytes]]:
    at = 0
    while at < len(directory):
        if len(directory) - at < _ENTRY.size or not directory.startswith(b"PK\x01\x02", at):
            raise FormatError("not_a_model", f"the zip directory is broken at byte {at}")
        entry = _Entry._make(_ENTRY.unpack_from(directory, at))
        name_end = at + _ENTRY.size + entry.name_size
        extra_end = name_end + entry.extra_size
        name, extra = directory[at + _ENTRY.size : name_end], directory[name_end:extra_end]
        at = extra_end + entry.comment_size
        if at > len(directory):
            raise FormatError("not_a_model", "the last entry of the zip directory is cut off")
        yield entry, name, extra


def _member(fd: int, entry: _Entry, raw_name: bytes, extra: bytes, directory_start: int) -> Member:
    name = raw_name.decode("utf-8" if entry.flags & _FLAG_UTF8 else "cp437", errors="replace")
    if entry.flags & _FLAG_ENCRYPTED:
        raise FormatError("not_a_model", f"entry {quoted([name])} is encrypted")
    if entry.method not in (STORED, DEFLATED):
        method = f"compression {entry.method}, allowed are 0 (stored) and 8 (deflated)"
        raise FormatError("not_a_model", f"entry {quoted([name])} has {method}")
    size, compressed, header = _sizes(name, (entry.size, entry.compressed_size, entry.offset), extra)
    magic, *_, name_size, extra_size = _LOCAL.unpack(read_at(fd, header, _LOCAL.size))
    offset = header + _LOCAL.size + name_size + extra_size
    if magic != b"PK\x03\x04" or offset + compressed > directory_start:
        raise FormatError("not_a_model", f"entry {quoted([name])} is not where the zip directory says")
    if entry.method == STORED and size != compressed:
        raise FormatError(
            "not_a_model", f"stored entry {quoted([name])} claims sizes {size} and {compressed}"
        )
    return Member(name, entry.method, entry.crc, compressed, size, offset)


def _sizes(name: str, values: tuple[int, int, int], extra: bytes) -> tuple[int, int, int]:
    """Replace, in this order, the size, compressed size and offset that are kept in the zip64 extra field."""
    wide = _zip64_values(extra)
    resolved = [next(wide, -1) if value == _IN_ZIP64 else value for value in values]
    if min(resolved) < 0 or max(resolved) >= 1 << 62:
        raise FormatError("not_a_model", f"entry {quoted([name])} has broken zip64 sizes")
    return resolved[0], resolved[1], resolved[2]


def _zip64_values(extra: bytes) -> Iterator[int]:
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        field = extra[at + 4 : at + 4 + size]
        if kind == _ZIP64_EXTRA:
            yield from struct.unpack_from(f"<{len(field) // 8}Q", field)
            return
        at += 4 + size


def _refuse_duplicates(members: tuple[Member, ...]) -> None:
    seen: set[str] = set()
    for member in members:
        if member.name in seen:
            raise FormatError("not_a_model", f"two entries are named {quoted([member.name])}")
        seen.add(member.name)
