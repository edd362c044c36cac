"""How a process runs and ends: signals, components with an order, and background tasks with an owner."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

import structlog

from fedcombiner.servicekit.errors import StartupError

log = structlog.get_logger(__name__)

T = TypeVar("T")
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Component(Protocol):
    """Something that is started and stopped once. A start that raises or is cancelled cleans up itself."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


ComponentT = TypeVar("ComponentT", bound=Component)


class Stopped(Exception):
    """The process was told to stop while it waited for something else."""


class Stop:
    """The one event that ends a process; it is handed to whoever runs in the foreground."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.reason = ""
        self.failed = False

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    def set(self, reason: str, *, failed: bool = False) -> None:
        """Ask for the end. The first reason stays; a process that `failed` exits with 1."""
        self.failed = self.failed or failed
        if not self.is_set:
            log.info("stopping", reason=reason, failed=self.failed)
            self.reason = reason
            self._event.set()

    async def wait(self) -> None:
        await self._event.wait()

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; when the stop comes first, `work` is cancelled and Stopped is raised."""
        task = asyncio.ensure_future(work)
        waiter = asyncio.ensure_future(self.wait())
        try:
            await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Stopped(self.reason)
        finally:
            await _cancel(task, waiter)


class Lifecycle:
    """Starts components in order and stops them in reverse, each with a time limit and a log line.

    Use as `async with Lifecycle(stop) as lifecycle`: at its end, and when a start fails or the stop comes
    in between, what was started is stopped. A stop that fails or takes too long is logged and does not
    keep the others from being stopped.
    """

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._started: list[tuple[str, Callable[[], Awaitable[None]], float]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._started:
            await _stop_one(*self._started.pop())

    async def start(
        self, name: str, component: ComponentT, *, start_seconds: float = 60.0, stop_seconds: float = 15.0
    ) -> ComponentT:
        """Start the component. Raises StartupError when it takes too long, Stopped, or what it raises."""
        begun = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(start_seconds) as limit:
                await self._stop.guard(component.start())
        except TimeoutError:
            if not limit.expired():
                raise
            raise StartupError(f"{name} did not start within {start_seconds:g} s") from None
        self.on_stop(name, component.stop, stop_seconds=stop_seconds)
        log.info("started", component=name, seconds=_since(begun))
        return component

    def on_stop(
        self, name: str, action: Callable[[], Awaitable[None]], *, stop_seconds: float = 15.0
    ) -> None:
        """Run `action` when its turn comes in the reverse order."""
        self._started.append((name, action, stop_seconds))


async def _stop_one(name: str, action: Callable[[], Awaitable[None]], seconds: float) -> None:
    begun = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(seconds) as limit:
            await action()
    except Exception:
        if limit.expired():
            log.error("did not stop in time", component=name, seconds=seconds)
        else:
            log.exception("failed to stop", component=name)
    else:
        log.info("stopped", component=name, seconds=_since(begun))


class Supervisor:
    """Owns the background tasks of a process: one that raises is logged and stops the process.

    A StartupError is one line in the log.

    A component; its stop cancels what still runs and waits for it.
    """

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def spawn(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` in the background. Raises RuntimeError after the supervisor was stopped."""
        if self._closed:
            work.close()
            raise RuntimeError(f"no task can be started any more: {name}")
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def start(self) -> None:
        """Nothing to do: tasks may be spawned before, too."""

    async def stop(self) -> None:
        self._closed = True
        await _cancel(*self._tasks)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, StartupError):
            log.error("cannot go on", task=task.get_name(), reason=str(error))
            self._stop.set(str(error), failed=True)
        elif error is not None:
            log.error("background task failed", task=task.get_name(), exc_info=error)
            self._stop.set(f"background task {task.get_name()!r} failed", failed=True)


def run(main: Callable[[Stop], Coroutine[Any, Any, None]]) -> int:
    """Run a process until `main` returns, and return its exit code.

    The first SIGTERM or SIGINT sets the stop; a second signal ends the process at once with 128 + its
    number. A StartupError is one line in the log and exit code 1, as is a stop that `failed`.
    """
    return asyncio.run(_run(main))


async def _run(main: Callable[[Stop], Coroutine[Any, Any, None]]) -> int:
    stop = Stop()
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, _on_signal, stop, number)
    try:
        await main(stop)
    except StartupError as error:
        log.error("cannot start", reason=str(error))
        return 1
    except Stopped:
        log.info("stopped before it had started")
    return int(stop.failed)


def _on_signal(stop: Stop, number: signal.Signals) -> None:
    if stop.is_set:
        os._exit(128 + number)
    stop.set(number.name)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def _since(begun: float) -> float:
    return round(asyncio.get_running_loop().time() - begun, 3)
