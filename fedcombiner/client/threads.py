"""Run a user's blocking code without letting it hold the event loop or the end of the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_daemon_thread(function: Callable[[], T], name: str) -> T:
    """The result of `function`, called in a thread of its own.

    A thread cannot be stopped. When the awaiting task is cancelled, the result is dropped when it comes; and
    as the thread is a daemon, neither the event loop nor the interpreter waits for it at the end, as both do
    for the threads of an executor.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # without an error there is a result

    def run() -> None:
        result, failure = None, None
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001  # it is raised again where the result is awaited
            fits = isinstance(error, Exception) and not isinstance(
                error, StopIteration
            )  # a future takes no other
            failure = error if fits else RuntimeError(f"{error!r} in thread {name}")
        try:
            loop.call_soon_threadsafe(settle, result, failure)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    threading.Thread(target=run, name=name, daemon=True).start()
    return await future
