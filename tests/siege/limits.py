"""How much memory and processor time a process may have: by control groups, or else as near as it gets."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
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
        group = self._group(MEMORY, pid)
        if group is not None:
            one = group / "memory.limit_in_bytes"
            (one if one.exists() else group / "memory.max").write_text(str(limit))
            (group / "cgroup.procs").write_text(str(pid))
            self.how[MEMORY] = f"a control group ({group.parent.parent.name or 'v2'})"
            return
        resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))
        self.how[MEMORY] = "RLIMIT_DATA: no control group can be made here"

    def limit_cpu(self, pid: int, cores: float) -> None:
        group = self._group(CPU, pid)
        if group is not None:
            quota = int(PERIOD_US * cores)
            if (group / "cpu.max").exists():
                (group / "cpu.max").write_text(f"{quota} {PERIOD_US}")
            else:
                (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(quota))
            (group / "cgroup.procs").write_text(str(pid))
            self.how[CPU] = "a control group"
            return
        task = asyncio.create_task(_duty(pid, cores), name="duty cycle")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.how[CPU] = "SIGSTOP and SIGCONT by turns: no control group can be made here"

    async def __aenter__(self) -> Limits:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        for path in reversed(self._made):
            with suppress(OSError):  # somebody is still in it
                path.rmdir()

    def _group(self, controller: str, pid: int) -> Path | None:
        """A new group with this controller; None where none can be made."""
        unified = (CGROUPS / "cgroup.controllers").exists()
        base = CGROUPS if unified else CGROUPS / controller
        group = base / self._name / f"{controller}-{pid}"
        try:
            for path in (group.parent, group):
                if not path.exists():
                    path.mkdir()
                    self._made.append(path)
                if unified and path != group:
                    for parent in (base, path):
                        (parent / "cgroup.subtree_control").write_text(f"+{controller}")
            known = (group / name for name in ("memory.limit_in_bytes", "memory.max", "cpu.max"))
            if any(path.exists() for path in (*known, group / "cpu.cfs_quota_us")):
                return group
        except OSError:
            pass
        return None


async def _duty(pid: int, cores: float) -> None:
    """Run a process for a part of each tenth of a second."""
    with suppress(ProcessLookupError):
        while True:
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(0.1 * min(1.0, cores))
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.1 * max(0.0, 1.0 - cores))


def scratch_bytes(directory: Path) -> int:
    """What is in a directory, whoever removes some of it meanwhile."""
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(place, name)).st_blocks * 512
    return total
