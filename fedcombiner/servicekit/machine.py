"""How much memory this process may use: of its control group and those around it, and of the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")


def memory_bytes(own: Path = _OWN, root: Path = _CGROUPS) -> int:
    """The least of all limits. Without one it is the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_limits(own, root)])


def _limits(own: Path, root: Path) -> Iterator[int]:
    lines: list[str] = []
    with suppress(OSError):
        lines = own.read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _limits_of(root, path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _limits_of(root / "memory", path, "memory.limit_in_bytes")


def _limits_of(root: Path, path: str, name: str) -> Iterator[int]:
    """Of the group and of all groups that it is in. In a container the path may lead outside of what it sees:
    then the root is its own.
    """
    group = root / path.lstrip("/")
    for directory in (group, *group.parents):
        with suppress(OSError, ValueError):
            yield int((directory / name).read_text())  # "max" is no number
        if directory == root:
            return
