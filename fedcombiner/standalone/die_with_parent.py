"""Run a program that gets SIGTERM when its parent ends, however that ends.

Usage: die_with_parent.py PARENT_PID PROGRAM [ARGUMENT ...]

A file that is run by its path, and not a `preexec_fn`: that would run Python, and the fork handlers of
gRPC, in a forked copy of a process full of threads. The request survives the exec. Linux only.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, program = int(sys.argv[1]), sys.argv[2]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        # It ended before the kernel was asked to tell.
        return
    try:
        os.execv(program, sys.argv[2:])  # noqa: S606 — no shell is wanted
    except OSError as error:
        sys.exit(f"cannot run {program}: {error.strerror}")


if __name__ == "__main__":
    main()
