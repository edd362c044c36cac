"""The allocator of a process that passes chunks of models through."""

import ctypes
from typing import Final

# malloc.h of glibc
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

_LARGEST_KEPT: Final = 8 << 20
_KEPT_BYTES: Final = 12 << 20


def keep_freed_chunks() -> None:
    """Let malloc keep up to 12 MiB of freed chunks, for the whole process; for mains to call, once.

    By default glibc gives the memory of nearly every chunk of a mebibyte back to the kernel, which then
    clears as many new pages for the next one. That costs about as much CPU as hashing and writing the chunk.
    Elsewhere than on glibc nothing is done.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
