"""Names of entries in an archive: what passes here stays in the folder that the archive is unpacked into."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Final

from fedcombiner.servicekit.errors import shown

MAX_NAME_BYTES: Final = 1024
MAX_PART_BYTES: Final = 255  # of a file name, on every file system in use

_DRIVE: Final = re.compile(r"[A-Za-z]:")


class BadPackage(Exception):
    """Why an archive cannot be a compute package; the message names the entry, for the person who made it."""


def inner_path(name: str) -> PurePosixPath:
    """The path below the folder; `.` for the folder itself. Raises BadPackage."""
    trouble = _trouble(name)
    if trouble:
        raise BadPackage(f"entry {shown(name)} {trouble}")
    return PurePosixPath(*(part for part in name.split("/") if part not in ("", ".")))


def _trouble(name: str) -> str:
    if name.startswith("/") or _DRIVE.match(name):
        return "is an absolute path; allowed: paths below the package's folder"
    parts = name.split("/")
    if ".." in parts:
        return "leaves the package's folder; allowed: paths without '..'"
    if "\\" in name or not name.isprintable():
        return "has a backslash or a character that cannot be printed"
    if len(name.encode()) > MAX_NAME_BYTES or max(len(part.encode()) for part in parts) > MAX_PART_BYTES:
        return f"is too long; allowed: {MAX_NAME_BYTES} bytes, {MAX_PART_BYTES} between two slashes"
    return ""


class Tree:
    """The entries of an archive so far: each file once, and no file below a file."""

    def __init__(self) -> None:
        self._files: set[PurePosixPath] = set()
        self._folders: set[PurePosixPath] = {PurePosixPath()}

    def add_folder(self, path: PurePosixPath) -> None:
        """Raises BadPackage."""
        for folder in (path, *path.parents):
            if folder in self._files:
                raise BadPackage(f"entry {shown(str(folder))} is both a file and a folder")
            self._folders.add(folder)

    def add_file(self, path: PurePosixPath) -> None:
        """Raises BadPackage."""
        self.add_folder(path.parent)
        if path in self._files:
            raise BadPackage(f"entry {shown(str(path))} is there twice")
        if path in self._folders:
            raise BadPackage(f"entry {shown(str(path))} is both a file and a folder")
        self._files.add(path)

    def __contains__(self, path: PurePosixPath) -> bool:
        return path in self._files
