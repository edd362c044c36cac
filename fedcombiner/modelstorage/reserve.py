"""The part of its disk that the model store leaves free for other programs, above all Redis."""

import os
from pathlib import Path

from fedcombiner.modelstorage.store import StoreFull


class DiskReserve:
    """At least `reserve` bytes of the disk stay free, as far as that depends on the model store. Blocking."""

    def __init__(self, reserve: int) -> None:
        self._reserve = reserve

    def check(self, directory: Path, wanted: int = 0) -> None:
        """Raises StoreFull if there is no room for so many bytes more on the disk of this directory."""
        found = os.statvfs(directory)
        free = found.f_bavail * found.f_frsize
        if free - wanted < self._reserve:
            raise StoreFull(
                f"the disk of the model store is full: {free >> 20} MiB are left, and of those "
                f"{self._reserve >> 20} MiB (DISK_RESERVE_BYTES) stay free; run `combiner model prune`, "
                "or get a larger disk"
            )
