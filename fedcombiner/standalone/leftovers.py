"""What a stack that was killed leaves on its data directory, and the locks that tell who uses it.

Two locks, because two questions have different answers. The *stack* lock is held by the process that
runs the stack: when it is taken, somebody else works here. The *server* lock is inherited by the Redis
child, too: when only that one is taken, a child outlives its killed parent for a moment and is to be
waited for.
"""

import asyncio
import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog

from fedcombiner.servicekit.backoff import Backoff, retry
from fedcombiner.servicekit.errors import StartupError

log = structlog.get_logger(__name__)

TERMINATE_SECONDS: Final = 10.0
LOCK_SECONDS: Final = 30.0


class _Held(Exception):
    """Another process holds the lock."""


def _lock(path: Path) -> int:
    """A locked file descriptor; the lock goes with the last process that has it open. Raises _Held."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise _Held(path) from None
    return descriptor


def lock_stack(path: Path) -> int:
    """The lock of the one stack that uses a directory. Raises StartupError naming the one that does."""
    try:
        descriptor = _lock(path)
    except _Held:
        owner = path.read_text(errors="replace").strip() or "unknown"
        raise StartupError(f"{path.parent} is in use by another running stack (process {owner})") from None
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


async def lock_server(path: Path, pid_file: Path) -> int:
    """The lock of the one server that writes in a directory; a server without its stack is ended first.

    Raises StartupError when it does not end.
    """
    try:
        return _lock(path)
    except _Held:
        log.warning(
            "a Redis server is left from a stack that was killed; ending it", directory=str(path.parent)
        )
    await _end_server(pid_file)

    async def attempt() -> int:
        return _lock(path)

    try:
        return await retry(attempt, on=_Held, timeout=LOCK_SECONDS, backoff=Backoff(0.02, 0.5))
    except _Held:
        raise StartupError(f"a Redis server that was left behind still writes in {path.parent}") from None


async def _end_server(pid_file: Path) -> None:
    """End the server that wrote `pid_file`, if there is one, and return when it has ended."""
    try:
        pid = int(pid_file.read_text())
        pidfd = os.pidfd_open(pid)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return
    try:
        # From here on the number cannot come to mean another process; whether it already does is seen
        # from its working directory, which is the server's data directory and nobody else's.
        if Path(f"/proc/{pid}/cwd").samefile(pid_file.parent):
            await _end(pidfd)
    except (FileNotFoundError, PermissionError):
        return
    finally:
        os.close(pidfd)


async def _end(pidfd: int) -> None:
    with _exit_of(pidfd) as ended:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                signal.pidfd_send_signal(pidfd, number)
            except ProcessLookupError:
                return
            try:
                async with asyncio.timeout(TERMINATE_SECONDS):
                    await ended.wait()
                    return
            except TimeoutError:
                log.warning("the Redis server that was left does not end", signal=number.name)


@contextmanager
def _exit_of(pidfd: int) -> Iterator[asyncio.Event]:
    """An event that is set when the process behind `pidfd`, a child or not, has ended."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        yield ended
    finally:
        loop.remove_reader(pidfd)
