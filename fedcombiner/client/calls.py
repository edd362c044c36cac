"""Calls to one combiner that go on when it comes back: the common part of the operator's client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final, TypeVar

from fedcombiner.client.errors import ServerUnreachable, TlsFailed, rpc_errors
from fedcombiner.client.link import Link
from fedcombiner.client.trust import tls_trouble
from fedcombiner.servicekit.backoff import Backoff, retry
from fedcombiner.servicekit.errors import DeadlineExceeded, Unavailable

T = TypeVar("T")

TIMEOUT: Final = 10.0  # seconds an answer may take
_BACKOFF: Final = Backoff(0.2, 3.0)
_AWAY: Final = (Unavailable, DeadlineExceeded)


class Calls:
    """What is asked is asked again for `patience` seconds while there is no answer, unless TLS is why."""

    address: str
    link: Link
    _patience: float

    async def _reach(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            with rpc_errors():
                return await call()
        except _AWAY as error:
            await self._check_tls()
            raise ServerUnreachable(self.address, error.message) from None

    async def _check_tls(self) -> None:
        """Raise TlsFailed if that is why there is no answer."""
        if trouble := await tls_trouble(self.address, self.link.trust):
            raise TlsFailed(self.address, trouble)

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        return await retry(
            lambda: self._reach(call), on=ServerUnreachable, timeout=self._patience, backoff=_BACKOFF
        )

    async def _list(self, call: Callable[[], Any]) -> list[Any]:
        async def read() -> list[Any]:
            return [item async for item in call()]

        return await self._call(read)

    async def _watch(self, call: Callable[[], Any]) -> AsyncGenerator[Any, None]:
        """Events of a stream that is opened again, whenever it ends, until the caller has seen enough."""
        clock = asyncio.get_running_loop().time
        away_since, delays = None, _BACKOFF.delays()
        while True:
            detail = "the stream ended"
            stream = call()
            try:
                with rpc_errors():
                    async for event in stream:
                        away_since, delays = None, _BACKOFF.delays()
                        yield event
            except _AWAY as error:
                detail = error.message
                await self._check_tls()
            finally:
                # The channel holds on to a call that has not ended, and the server goes on with it.
                stream.cancel()
            delay = next(delays)
            away_since = away_since or clock()
            if clock() - away_since + delay > self._patience:
                raise ServerUnreachable(self.address, detail)
            await asyncio.sleep(delay)
