"""An event loop in a thread of its own: for blocking methods, whose callers have no loop or one that runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs from the construction to `close`; leave it as a context manager, or close it.

    The thread is a daemon: a program that forgets to close it ends all the same.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._running = threading.Event()
        self._submitting = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(
            target=asyncio.run, args=(self._until_closed(),), name=name, daemon=True
        )
        self._thread.start()
        self._running.wait()

    async def _until_closed(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self._running.set()
        await self._end.wait()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, run in the loop. Cancels it when the wait is interrupted.

        Raises:
            RuntimeError: the loop is closed, or this is its own thread, which would wait for itself.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError(f"{self._name} would wait for itself here: call this from another thread")
        future = self.submit(work)
        try:
            return future.result()
        except CancelledError:
            raise RuntimeError(f"{self._name} was closed meanwhile") from None
        except BaseException:
            future.cancel()
            raise

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin `work` in the loop. Raises RuntimeError when it is closed."""
        with self._submitting:
            if self._closed:
                work.close()
                raise RuntimeError(f"{self._name} is closed")
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Cancel what still runs, and return when the thread has ended. Closing again does nothing."""
        with self._submitting:
            if not self._closed:
                self._closed = True
                self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
