"""The calls that a server is answering, so that its stop can end them with a status."""

import asyncio
from typing import Any


class CallsUnderWay:
    """The tasks that answer calls.

    A call that gRPC cuts off ends with a reset of its stream, which FEDn's clients may not survive.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ending = False

    def begin(self) -> None:
        """The current task answers a call until its `finish`."""
        self._tasks.add(_current())

    def finish(self) -> None:
        self._tasks.discard(_current())

    def end(self) -> int:
        """Cancel all calls and return how many there were. Each finds out by `was_ended`."""
        self._ending = True
        for task in self._tasks:
            task.cancel()
        return len(self._tasks)

    def was_ended(self) -> bool:
        """Whether `end` cancelled the current call, which then goes on, to send its status."""
        task = _current()
        if not self._ending or task not in self._tasks:
            return False
        while task.cancelling():
            task.uncancel()
        return True


def _current() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task
