"""How much memory this process may use, and how many open files: each connection of a client is one."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger(__name__)

_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")


def memory_bytes(own: Path = _OWN, root: Path = _CGROUPS) -> int:
    """The least limit of the control group and of those around it; without one, the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_limits(own, root)])


def raise_open_files() -> None:
    """Raise the soft limit of open files to the hard limit, as far as the system allows; logged."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        log.info("limit of open files", limit=soft)
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        log.warning(
            "the limit of open files cannot be raised", limit=soft, hard_limit=hard, reason=str(error)
        )
    else:
        log.info("limit of open files raised", limit=hard, was=soft)


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
    """Limits of the group and of all groups around it. In a container the path may lead outside of what it
    sees: then the root is its own.
    """
    group = root / path.lstrip("/")
    for directory in (group, *group.parents):
        with suppress(OSError, ValueError):
            yield int((directory / name).read_text())  # "max" is no number
        if directory == root:
            return
