"""How much memory and processor time a process may have: by control groups, or else as near as it gets."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

CGROUPS: Final = Path("/sys/fs/cgroup")
PERIOD_US: Final = 100_000
MEMORY, CPU = "memory", "cpu"


class Limits:
    """Use as `async with`. `how` says of memory and of processor time by what they are limited."""

    def __init__(self) -> None:
        self._name = f"siege-{os.getpid()}"
        self._made: list[Path] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.how: dict[str, str] = {}

    def limit_memory(self, pid: int, limit: int) -> None:
        """From now on: call it when the process has just begun."""
        files = {"memory.max": limit, "memory.limit_in_bytes": limit}
        if self._grouped(MEMORY, pid, files):
            self.how[MEMORY] = "control groups"
        else:
            resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))
            self.how[MEMORY] = "RLIMIT_DATA, as no control group can be made here"

    def limit_cpu(self, pid: int, cores: float) -> None:
        quota = int(PERIOD_US * cores)
        if self._grouped(CPU, pid, {"cpu.max": f"{quota} {PERIOD_US}", "cpu.cfs_quota_us": quota}):
            self.how[CPU] = "a control group"
            return
        task = asyncio.create_task(_duty(pid, cores), name="duty cycle")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.how[CPU] = "SIGSTOP and SIGCONT by turns, as no control group can be made here"

    async def __aenter__(self) -> Limits:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        for path in reversed(self._made):
            with suppress(OSError):  # somebody is still in it
                path.rmdir()

    def _grouped(self, controller: str, pid: int, files: Mapping[str, object]) -> bool:
        """Put a process into a group of its own, with what those of the files say that are there: the names
        differ between the two versions of control groups. False if that is not possible.
        """
        unified = (CGROUPS / "cgroup.controllers").exists()
        base = CGROUPS if unified else CGROUPS / controller
        group = base / self._name / f"{controller}-{pid}"
        try:
            for path in (group.parent, group):
                if unified:
                    (path.parent / "cgroup.subtree_control").write_text(f"+{controller}")
                if not path.exists():
                    path.mkdir()
                    self._made.append(path)
            known = [name for name in files if (group / name).exists()]
            for name in known:
                (group / name).write_text(str(files[name]))
            if known:
                (group / "cgroup.procs").write_text(str(pid))
        except OSError:
            return False
        return bool(known)


async def _duty(pid: int, cores: float) -> None:
    """Run a process for a part of each tenth of a second."""
    with suppress(ProcessLookupError):
        while True:
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(0.1 * min(1.0, cores))
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.1 * max(0.0, 1.0 - cores))


def scratch_bytes(directory: Path) -> int:
    """The entries of a directory, although others may be removing some meanwhile."""
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(place, name)).st_blocks * 512
    return total
