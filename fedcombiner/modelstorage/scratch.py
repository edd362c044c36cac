"""Private scratch directories under a root that processes share, and the removal of those of dead processes.

Each process works in a directory of its own under the root and holds an flock on a file in it for as long as
it lives; the kernel drops the lock however the process ends. So a directory whose lock can be taken belongs
to nobody. Directories are made, locked and removed only under the root's own lock: otherwise a starting
process could take the directory that another one has made and not locked yet. Process ids and ages would not
do: ids are reused and mean nothing across containers, and a slow upload may be old.
"""

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCK = "lock"
_BLOCK = 4096


class ScratchArea:
    """This process's part of the shared scratch root. Blocking; for worker threads."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._own = root / uuid.uuid4().hex
        self._lock: int | None = None

    def open(self) -> None:
        """Claim a directory and remove those whose owners are dead. Does nothing if it is open."""
        if self._lock is not None:
            return
        self._root.mkdir(parents=True, exist_ok=True)
        with _locked(self._root / _LOCK):
            self._sweep()
            self._own.mkdir(exist_ok=True)
            self._lock = _try_lock(self._own / _LOCK)

    def close(self) -> None:
        """Remove this process's directory and everything in it."""
        if self._lock is None:
            return
        with suppress(FileNotFoundError), _locked(self._root / _LOCK):
            shutil.rmtree(self._own, ignore_errors=True)
        os.close(self._lock)
        self._lock = None

    @property
    def is_open(self) -> bool:
        return self._lock is not None

    @property
    def directory(self) -> Path:
        """The directory of this process; it exists between `open` and `close`."""
        return self._own

    def path(self) -> Path:
        """A path in the area that nothing else uses."""
        return self._own / uuid.uuid4().hex

    def probe(self) -> None:
        """Prove that the area can be written: a full disk would still let a file's times be changed."""
        path = self.path()
        try:
            with path.open("wb") as file:
                file.write(bytes(_BLOCK))
                file.flush()
                os.fsync(file.fileno())
        finally:
            path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        for directory in self._root.iterdir():
            if directory.is_dir() and (lock := _try_lock(directory / _LOCK)) is not None:
                shutil.rmtree(directory, ignore_errors=True)
                os.close(lock)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """The descriptor that holds the lock, None if another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
