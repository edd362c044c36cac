"""Where the embedded Redis has its socket: a short path, in a directory that nobody else can enter."""

import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from fedcombiner.servicekit.errors import StartupError

# Of sockaddr_un, without the final zero.
SOCKET_PATH_BYTES: Final = 107


def socket_path(directory: Path, runtime_dir: Path | None) -> Path:
    """Where the socket of the server on `directory` goes. Raises StartupError when that is too long."""
    if runtime_dir is None:
        name = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
        user = f"fedcombiner-{os.geteuid()}"
        runtime_dir = Path(tempfile.gettempdir(), user, name)
        if len(os.fsencode(runtime_dir)) > SOCKET_PATH_BYTES - 16:
            runtime_dir = Path("/tmp", user, name)  # noqa: S108 — made private before use
    path = runtime_dir.absolute() / "redis.sock"
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise StartupError(f"the runtime directory is too long for a socket: {runtime_dir}")
    return path


def make_private(directory: Path, *, shared: bool) -> None:
    """Make the directory, and with `shared` the one above it that is common to all stacks of this user.

    Raises StartupError unless they are ours and nobody else's: others may write where they are made.
    """
    for each in (directory.parent, directory) if shared else (directory,):
        each.mkdir(mode=0o700, parents=not shared, exist_ok=True)
        found = each.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise StartupError(f"{each} must be a directory that only this user can enter")
