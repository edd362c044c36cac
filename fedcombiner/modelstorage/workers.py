"""Worker threads for blocking file work that a cancelled transfer must not leave half way."""

import asyncio
import errno
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from fedcombiner.modelstorage.store import StoreFull, StoreUnavailable

_T = TypeVar("_T")
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Workers:
    """A bounded number of threads. Calls beyond it wait, first come first served.

    An `OSError` of a call is raised as `StoreFull` or `StoreUnavailable`.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._finishing: set[asyncio.Task[None]] = set()

    async def drain(self) -> None:
        """Wait for everything handed to `finish`."""
        while self._finishing:
            await asyncio.wait(self._finishing)

    def close(self) -> None:
        """End the threads, after the calls they have."""
        self._pool.shutdown()

    def submit(self, call: Callable[[], _T]) -> asyncio.Future[_T]:
        """Start `call` in a thread; wait for it with `result`."""
        return asyncio.get_running_loop().run_in_executor(self._pool, _translated, call)

    @staticmethod
    async def result(job: asyncio.Future[_T]) -> _T:
        """The result of a submitted call, which goes on if the waiting is cancelled."""
        return await asyncio.shield(job)

    async def run(self, call: Callable[[], _T]) -> _T:
        """The result of `call` in a thread; the call goes on if the waiting is cancelled."""
        return await self.result(self.submit(call))

    async def finish(self, work: Coroutine[None, None, None]) -> None:
        """Do `work` to its end also if the waiting is cancelled: a thread may use what it cleans up."""
        task = asyncio.create_task(work)
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        await asyncio.shield(task)


def _translated(call: Callable[[], _T]) -> _T:
    try:
        return call()
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFull("no space is left in the model store") from error
        raise StoreUnavailable(f"the model store does not work: {error.strerror}") from error
