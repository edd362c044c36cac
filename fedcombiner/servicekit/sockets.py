"""Closing a connection that gRPC offers no way to close. Linux only; elsewhere nothing is found."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import unquote

_DESCRIPTORS: Final = Path("/proc/self/fd")


def close_connection(peer: str) -> bool:
    """Shut down this process's TCP connection with a peer, named as gRPC does; False if there is none.

    Blocking: it looks through all open files.
    """
    host, _, port = unquote(peer.partition(":")[2]).rpartition(":")
    wanted = (host.strip("[]"), port)
    with suppress(FileNotFoundError):
        for entry in os.listdir(_DESCRIPTORS):
            if _shut_if(int(entry), wanted):
                return True
    return False


def _shut_if(descriptor: int, wanted: tuple[str, str]) -> bool:
    # A copy stays the same file, also if gRPC closes its own and the number is given to another one.
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as copy:
        if copy.type == socket.SOCK_STREAM and copy.family in (socket.AF_INET, socket.AF_INET6):
            host, port = copy.getpeername()[:2]
            if (host.removeprefix("::ffff:"), str(port)) == (wanted[0].removeprefix("::ffff:"), wanted[1]):
                copy.shutdown(socket.SHUT_RDWR)
                return True
    return False
