"""Making a compute package of what a person has: a folder, a zip, or a tar.gz that stays as it is.

Neither times nor owners nor the order of a directory get into it, so the same files have the same checksum
wherever zlib is the same.
"""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Final

from fedcombiner.packages.archive import DESCRIPTION, FOLDER, NO_FILE, ZIP_MAGIC, PackageLimits
from fedcombiner.packages.names import BadPackage, inner_path
from fedcombiner.servicekit.errors import printable, shown

# What tools leave in a folder, and no client needs.
_LEFT_OUT: Final = frozenset({".git", ".venv", "__pycache__"})
_FILE_MODE, _EXECUTABLE_MODE = 0o644, 0o755
_ENCRYPTED: Final = 1


def pack(source: Path, target: Path, limits: PackageLimits) -> Path:
    """The archive of `source`: written to `target`, or `source` itself if it is a tar.gz. Blocking.

    A folder may be the client folder itself or the one that holds `client/`. Whether the archive is a good
    package is left to `check_archive`.

    Raises:
        BadPackage: it cannot be packed.
        OSError: a file cannot be read or written.
    """
    if source.is_dir():
        with _new_archive(target) as archive:
            _pack_folder(_client_folder(source), archive)
        return target
    with source.open("rb") as file:
        if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
            return source
    with _new_archive(target) as archive:
        _pack_zip(source, archive, limits)
    return target


def _client_folder(source: Path) -> Path:
    for folder in (source / FOLDER, source):
        if (folder / DESCRIPTION.name).is_file():
            return folder
    raise BadPackage(
        f"{source} has no {DESCRIPTION.name}, nor has {source / FOLDER}; it says what clients run"
    )


def _pack_folder(folder: Path, archive: tarfile.TarFile) -> None:
    for path in _files_below(folder):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise BadPackage(f"{path} {NO_FILE}")
        name = str(FOLDER / path.relative_to(folder).as_posix())
        inner_path(name)
        with path.open("rb") as content:
            _add(archive, name, content, status.st_size, bool(status.st_mode & stat.S_IXUSR))


def _files_below(folder: Path) -> Iterator[Path]:
    """Everything that is not a folder, in an order of its own names only."""
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        folders[:] = sorted(set(folders) - _LEFT_OUT - set(links))
        yield from (Path(parent) / name for name in sorted([*files, *links]))


def _pack_zip(source: Path, archive: tarfile.TarFile, limits: PackageLimits) -> None:
    try:
        with zipfile.ZipFile(source) as zipped:
            entries = [entry for entry in zipped.infolist() if not entry.is_dir()]
            _check_zip(entries, limits)
            within = _prefix(entries)
            for entry in sorted(entries, key=lambda entry: entry.filename):
                with zipped.open(entry) as content:
                    executable = bool(entry.external_attr >> 16 & stat.S_IXUSR)
                    name = str(within / inner_path(entry.filename))
                    _add(archive, name, content, entry.file_size, executable)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
        raise BadPackage(f"{source} is no readable zip: {printable(str(error))}") from None


def _check_zip(entries: list[zipfile.ZipInfo], limits: PackageLimits) -> None:
    if len(entries) > limits.entries:
        raise BadPackage(f"the zip has more than {limits.entries} entries")
    if sum(entry.file_size for entry in entries) > limits.unpacked_bytes:
        raise BadPackage(f"the files have more than {limits.unpacked_bytes} bytes together")
    for entry in entries:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise BadPackage(
                f"entry {shown(entry.filename)} is a link or a device; allowed: files and folders"
            )
        if entry.flag_bits & _ENCRYPTED:
            raise BadPackage(f"entry {shown(entry.filename)} is encrypted")


def _prefix(entries: list[zipfile.ZipInfo]) -> PurePosixPath:
    """`client` for a zip of the client folder's content."""
    names = {inner_path(entry.filename) for entry in entries}
    at_top = PurePosixPath(DESCRIPTION.name) in names and DESCRIPTION not in names
    return FOLDER if at_top else PurePosixPath()


def _add(archive: tarfile.TarFile, name: str, content: IO[bytes], size: int, executable: bool) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = size
    entry.mode = _EXECUTABLE_MODE if executable else _FILE_MODE
    try:
        archive.addfile(entry, content)
    except OSError as error:
        if error.errno is not None:
            raise
        # tarfile's own: fewer bytes than the size said.
        raise BadPackage(f"{name} changed while it was packed") from None


@contextmanager
def _new_archive(target: Path) -> Iterator[tarfile.TarFile]:
    with (
        target.open("xb") as file,
        # No name and no time, so that the bytes depend on the files alone.
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w:", format=tarfile.PAX_FORMAT) as archive,
    ):
        yield archive
