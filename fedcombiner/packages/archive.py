"""Checking a compute package without unpacking it.

A tar.gz, which is what clients of every generation unpack, with a folder `client` that holds `fedn.yaml`.
Clients unpack without a check of their own, so nothing passes that would write outside of their folder, or
be anything but files and folders.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, cast

from fedcombiner.packages.names import BadPackage, Tree, inner_path
from fedcombiner.servicekit.errors import printable, shown

FOLDER: Final = PurePosixPath("client")
DESCRIPTION: Final = FOLDER / "fedn.yaml"
GZIP_MAGIC: Final = b"\x1f\x8b"
ZIP_MAGIC: Final = b"PK\x03\x04"
NO_FILE: Final = "is a link or a device; allowed: files and folders"

_MAX_DESCRIPTION_BYTES: Final = 64 << 10
# Of one read and of all: tarfile takes extended headers into memory, and keeps what the global ones say.
_MAX_HEADER_BYTES: Final = 64 << 10
_MAX_HEADERS_BYTES: Final = 32 << 20
_SKIP_BYTES: Final = 64 << 10
_TAR_BLOCK: Final = 512
_SETUID_SETGID: Final = 0o6000
_UNREADABLE: Final = (
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    ValueError,
    OverflowError,
    RecursionError,
)


@dataclass(frozen=True, slots=True)
class PackageLimits:
    """Bytes of the archive, bytes of all files in it, and number of entries, at most."""

    archive_bytes: int = 100 << 20
    unpacked_bytes: int = 1 << 30
    entries: int = 10_000


def check_archive(path: Path, limits: PackageLimits) -> None:
    """Return if the file is a compute package. Blocking; takes no more memory than the names in it.

    Raises:
        BadPackage: it is none, or larger than the limits.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if size > limits.archive_bytes:
        raise BadPackage(f"the archive has {size} bytes; allowed: {limits.archive_bytes}")
    with path.open("rb") as file:
        _check_format(file.read(len(ZIP_MAGIC)))
        file.seek(0)
        with closing(_Unzipped(file, limits.unpacked_bytes + _MAX_HEADERS_BYTES)) as unzipped:
            try:
                _check_entries(unzipped, limits)
                unzipped.read_out()
            except _UNREADABLE as error:
                raise BadPackage(f"the archive is no readable tar.gz: {printable(str(error))}") from None


def _check_format(begin: bytes) -> None:
    if begin.startswith(GZIP_MAGIC):
        return
    if begin == ZIP_MAGIC:
        raise BadPackage("clients cannot unpack zip: make a tar.gz of it, as `combiner package put` does")
    raise BadPackage("the archive is no tar.gz: its first bytes are not those of gzip")


def _check_entries(unzipped: _Unzipped, limits: PackageLimits) -> None:
    tree = Tree()
    unpacked = entries = 0
    with tarfile.open(fileobj=cast("Any", unzipped), mode="r:") as archive:
        for entry in archive:
            entries, unpacked = entries + 1, unpacked + max(entry.size, 0)
            if entries > limits.entries:
                raise BadPackage(f"the archive has more than {limits.entries} entries")
            if unpacked > limits.unpacked_bytes:
                raise BadPackage(f"the files have more than {limits.unpacked_bytes} bytes together")
            path = _checked(entry, tree)
            if path == DESCRIPTION:
                _check_description(archive, entry)
    if DESCRIPTION not in tree:
        hint = " (fedn.yaml is there, but not in that folder)" if PurePosixPath("fedn.yaml") in tree else ""
        raise BadPackage(f"the archive has no {DESCRIPTION}{hint}")


def _checked(entry: tarfile.TarInfo, tree: Tree) -> PurePosixPath:
    path = inner_path(entry.name)
    if entry.isdir():
        tree.add_folder(path)
    elif entry.isreg() and not entry.issparse():
        tree.add_file(path)
    else:
        raise BadPackage(f"entry {shown(entry.name)} {NO_FILE}")
    if entry.mode & _SETUID_SETGID:
        raise BadPackage(f"entry {shown(entry.name)} would run as another user (setuid or setgid)")
    return path


def _check_description(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
    if entry.size > _MAX_DESCRIPTION_BYTES:
        raise BadPackage(f"{DESCRIPTION} has {entry.size} bytes; allowed: {_MAX_DESCRIPTION_BYTES}")
    content = archive.extractfile(entry)
    assert content is not None  # it is a file
    try:
        text = content.read().decode()
    except UnicodeDecodeError:
        raise BadPackage(f"{DESCRIPTION} is not text in UTF-8") from None
    if "entry_points" not in text:
        raise BadPackage(f"{DESCRIPTION} names no entry_points, so clients would have nothing to run")


class _Unzipped:
    """What tarfile needs of a file, forward only, over a gzip that may be a bomb."""

    def __init__(self, file: io.BufferedReader, most_bytes: int) -> None:
        self._gzip = gzip.GzipFile(fileobj=file, mode="rb")
        self._most_bytes = most_bytes
        self._read = 0

    def tell(self) -> int:
        return self._gzip.tell()

    def seekable(self) -> bool:
        return True

    def read(self, size: int) -> bytes:
        self._read += size
        if size > _MAX_HEADER_BYTES + _TAR_BLOCK or self._read > _MAX_HEADERS_BYTES:
            raise BadPackage("the archive has headers larger than any package needs")
        return self._gzip.read(size)

    def seek(self, position: int) -> int:
        if position > self._most_bytes:
            raise BadPackage(f"the archive unpacks to more than {self._most_bytes} bytes")
        while (ahead := position - self.tell()) > 0 and self._gzip.read(min(ahead, _SKIP_BYTES)):
            pass
        return self.tell()

    def read_out(self) -> None:
        """To its end, where the checksum is."""
        while self._gzip.read(_SKIP_BYTES):
            if self.tell() > self._most_bytes:
                raise BadPackage(f"the archive unpacks to more than {self._most_bytes} bytes")

    def close(self) -> None:
        self._gzip.close()
