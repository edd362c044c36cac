"""Whether rounds fit into the memory and the scratch disk of this process.

All replicas are taken to be alike: the one that is asked to start a job answers for all.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedcombiner.modelstorage.formats import ModelSpec
from fedcombiner.servicekit.machine import memory_bytes

SUM_BYTES: Final = 16  # of an element: docs/aggregation.md
BUFFER_BYTES: Final = 16 << 20
_MB: Final = 1_000_000
_RSS, _SIZE, _DATA = 1, 0, 5  # fields of /proc/self/statm


def round_bytes(spec: ModelSpec) -> int:
    """Memory of a round on a model, whatever the number of its clients."""
    return SUM_BYTES * spec.elements + BUFFER_BYTES


@dataclass(frozen=True, slots=True)
class Capacity:
    """`limit`: memory that the process may have; `idle`: what it takes without work."""

    limit: int
    idle: int
    scratch: Path

    @classmethod
    def measured(cls, scratch: Path) -> Capacity:
        """The capacity of this process, measured before it has any work."""
        pages = [int(field) for field in Path("/proc/self/statm").read_text().split()]
        page = os.sysconf("SC_PAGE_SIZE")
        limits = [(memory_bytes(), pages[_RSS] * page)]
        for kind, field in ((resource.RLIMIT_AS, _SIZE), (resource.RLIMIT_DATA, _DATA)):
            soft, _ = resource.getrlimit(kind)
            if soft != resource.RLIM_INFINITY:
                limits.append((soft, pages[field] * page))
        limit, idle = min(limits, key=lambda pair: pair[0] - pair[1])
        return cls(limit, idle, scratch)

    @property
    def memory(self) -> int:
        """Bytes that rounds may take."""
        return max(0, self.limit - self.idle)

    def lacks_memory(self, spec: ModelSpec) -> str:
        """Why a round on the model can never be done here, for a person; empty if it can."""
        need = round_bytes(spec)
        if need <= self.memory:
            return ""
        return (
            f"a round takes {_mb(need)} of memory ({SUM_BYTES} bytes for each of {spec.elements} numbers), "
            f"and a combiner has {_mb(self.memory)} for it: its limit of {_mb(self.limit)} less "
            f"{_mb(self.idle)} that it takes without work; give the combiners more memory"
        )

    def lacks_scratch(self, spec: ModelSpec) -> str:
        """Why there is no room for the aggregate, at least; empty if there is, or that cannot be known."""
        try:
            free = shutil.disk_usage(self.scratch).free
        except OSError:
            return ""
        if spec.nbytes <= free:
            return ""
        return (
            f"a round takes at least {_mb(spec.nbytes)} of scratch, and {_mb(free)} are free in "
            f"{self.scratch} (SCRATCH); make room there"
        )


class Room:
    """Shares memory among the rounds that run here at once. One that finds too little waits."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._taken = 0
        self._given_back = asyncio.Event()

    def has(self, size: int) -> bool:
        """Something that is too large at all is let in alone."""
        return not self._taken or self._taken + size <= self._total

    async def take(self, size: int) -> None:
        while not self.has(size):
            self._given_back.clear()
            await self._given_back.wait()
        self._taken += size

    def give_back(self, size: int) -> None:
        self._taken -= size
        self._given_back.set()


def _mb(size: int) -> str:
    return f"{size / _MB:,.0f} MB"
