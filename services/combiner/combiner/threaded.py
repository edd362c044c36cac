"""A combiner served by an event loop in a thread of its own, for code that has no loop."""

from __future__ import annotations

import asyncio
import signal
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import structlog

from combiner.app import ChooseServices, serve
from combiner.ports import StateUnavailable
from combiner.servicers.common import redis_away
from combiner.settings import CombinerSettings
from fedcombiner.servicekit.errors import DeadlineExceeded
from fedcombiner.servicekit.lifecycle import Stop
from fedcombiner.servicekit.loopthread import LoopThread

log = structlog.get_logger()
T = TypeVar("T")

CALL_S: Final = 10.0


class ThreadedServer:
    """Serves from the construction to `stop`; leave it as a context manager, or stop it.

    `port` is the one that it serves on, also where 0 was asked for. The arguments are those of `app.serve`.
    """

    def __init__(
        self,
        settings: CombinerSettings,
        services: ChooseServices,
        discovery_trust: ssl.SSLContext | None = None,
    ) -> None:
        self._stop = Stop()
        self._stopping = threading.Lock()
        self._thread = LoopThread("the combiner")
        try:
            self.port = self._start(settings, services, discovery_trust)
        except BaseException:
            self._thread.close()
            raise

    def _start(
        self, settings: CombinerSettings, services: ChooseServices, discovery_trust: ssl.SSLContext | None
    ) -> int:
        port: futures.Future[int] = futures.Future()

        async def serving() -> None:
            await serve(
                settings,
                self._stop,
                lambda number, _metrics: port.set_result(number),
                services,
                discovery_trust=discovery_trust,
            )

        self._serving: futures.Future[None] = self._thread.submit(serving())
        either: list[futures.Future[Any]] = [port, self._serving]
        futures.wait(either, return_when=futures.FIRST_COMPLETED)
        if self._serving.done():
            self._serving.result()
        return port.result()

    def run(self) -> None:
        """Start the server: block until the combiner is stopped, by `stop`, SIGTERM or SIGINT.

        Signals are heard in the main thread only. Raises RuntimeError if a part of the combiner failed.
        """
        try:
            with _exit_on_sigterm():
                self.wait()
        except (KeyboardInterrupt, SystemExit) as signalled:
            log.info("stopping", reason=type(signalled).__name__)
        finally:
            self.stop()

    def wait(self) -> None:
        """Return when the combiner has stopped. Raises RuntimeError if a part of it failed."""
        self._serving.result()
        if self._stop.failed:
            raise RuntimeError(self._stop.reason)

    def stop(self) -> None:
        """Stop in order, as a service does on SIGTERM, and return when that is done. Again: does nothing."""
        with self._stopping:
            if not self._serving.done():
                self._thread.call(self._ask_to_stop())
            futures.wait([self._serving])
            self._thread.close()

    async def _ask_to_stop(self) -> None:
        self._stop.set("told to stop")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def call(self, work: Callable[[], Awaitable[T]], *, seconds: float | None = CALL_S) -> T:
        """The result of `work()`, awaited in the combiner's loop for `seconds` (None: however long it takes).

        Raises:
            Unavailable: Redis is away.
            DeadlineExceeded: it took longer.
            RuntimeError: the combiner has stopped.
        """
        return self._thread.call(_in_time(work, seconds))


async def _in_time(work: Callable[[], Awaitable[T]], seconds: float | None) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await work()
    except StateUnavailable as error:
        raise redis_away(error) from error
    except TimeoutError:
        raise DeadlineExceeded(f"the combiner gave no answer within {seconds} s") from None


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """SIGTERM raises SystemExit, in the main thread; elsewhere signals cannot be heard."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
