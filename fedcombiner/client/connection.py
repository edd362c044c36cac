"""Staying in touch with a combiner: heartbeats, and the streams that bring tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, NoReturn

from fedcombiner.client.errors import ServerUnreachable, is_final, rpc_errors
from fedcombiner.client.link import Link
from fedcombiner.client.messages import Messages, Task
from fedcombiner.servicekit.backoff import Backoff
from fedcombiner.servicekit.errors import ServiceError

logger = logging.getLogger(__name__)

HEARTBEAT_TIMEOUT: Final = 5.0  # seconds
_BACKOFF: Final = Backoff(0.2, 5.0)


class Connection:
    """The presence of one client at one combiner.

    Args:
        deliver: called with each task, in the order of arrival; while it waits, its stream is not read, and
            the server keeps what follows.
        lost_after: seconds without any answer after which `run` gives up; None: it never does.
        explain: asked once in each outage for why it may be, in words for the log; empty: not known.
        on_heartbeat: called with the seconds that each answered heartbeat took.
    """

    def __init__(
        self,
        link: Link,
        messages: Messages,
        deliver: Callable[[Task], Awaitable[None]],
        *,
        trains: bool,
        validates: bool,
        heartbeat_interval: float = 2.0,
        lost_after: float | None = None,
        explain: Callable[[], Awaitable[str]] | None = None,
        on_heartbeat: Callable[[float], None] | None = None,
    ) -> None:
        self._link = link
        self._messages = messages
        self._deliver = deliver
        self._streams = _subscriptions(link, messages, trains=trains, validates=validates)
        self._interval = heartbeat_interval
        self._lost_after = lost_after
        self._explain = explain
        self._explanation: str | None = None
        self._on_heartbeat = on_heartbeat
        self._heard_at = 0.0

    async def run(self) -> NoReturn:
        """Beat and listen until cancelled.

        Raises:
            ServerUnreachable: nothing was heard for `lost_after` seconds.
            ServiceError: the combiner answered that it will not have this client.
        """
        self._heard()
        async with one_error() as tasks:
            tasks.create_task(self._beat())
            for stream in self._streams:
                tasks.create_task(self._follow(stream))
        raise AssertionError("none of the tasks ends by itself")

    async def _beat(self) -> NoReturn:
        clock = asyncio.get_running_loop().time
        while True:
            started = clock()
            try:
                with rpc_errors():
                    await self._link.connector.SendHeartbeat(
                        self._messages.heartbeat, timeout=HEARTBEAT_TIMEOUT
                    )
            except ServiceError as error:
                await self._missed(error)
            else:
                self._heard()
                if self._on_heartbeat is not None:
                    self._on_heartbeat(clock() - started)
            await asyncio.sleep(max(0.0, started + self._interval - clock()))

    async def _follow(self, subscribe: Callable[[], Any]) -> NoReturn:
        clock = asyncio.get_running_loop().time
        delays = _BACKOFF.delays()
        while True:
            started = clock()
            try:
                with rpc_errors():
                    async for request in subscribe():
                        self._heard()
                        await self._take(request)
            except ServiceError as error:
                if is_final(error):
                    raise
                logger.info("%s: stream ended: %s", self._messages.name, error)
            if clock() - started > _BACKOFF.maximum:
                delays = _BACKOFF.delays()
            await asyncio.sleep(next(delays))

    async def _take(self, request: Any) -> None:
        task = Task.of(request)
        if task is None:
            logger.warning("%s: request of unknown type %d ignored", self._messages.name, request.type)
        else:
            await self._deliver(task)

    def _heard(self) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        self._explanation = None

    async def _missed(self, error: ServiceError) -> None:
        if is_final(error):
            raise error
        logger.info("%s: heartbeat not answered: %s", self._messages.name, error)
        if self._explanation is None and self._explain is not None:
            self._explanation = await self._explain()
            if self._explanation:
                logger.warning("%s: %s: %s", self._messages.name, self._link.address, self._explanation)
        silence = asyncio.get_running_loop().time() - self._heard_at
        if self._lost_after is not None and silence >= self._lost_after:
            raise ServerUnreachable(self._link.address, self._explanation or error.message)


@asynccontextmanager
async def one_error() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that raises the first error of its tasks as it is, not wrapped in a group."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


def _subscriptions(
    link: Link, messages: Messages, *, trains: bool, validates: bool
) -> list[Callable[[], Any]]:
    """How each stream of tasks is opened.

    They wait for the connection: when it comes back, each is there at once, and until then costs nothing.
    """

    def opener(call: Any) -> Callable[[], Any]:
        return lambda: call(messages.subscription, wait_for_ready=True)

    if messages.one_task_stream:
        return [opener(link.combiner.TaskStream)]
    streams = [opener(link.combiner.ModelUpdateRequestStream)] if trains else []
    return [*streams, opener(link.combiner.ModelValidationRequestStream)] if validates else streams
