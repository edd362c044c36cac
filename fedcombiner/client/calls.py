"""Calls to one combiner that go on when it comes back: the common part of the operator's client."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from fedcombiner.client.errors import ServerUnreachable, TlsFailed, rpc_errors
from fedcombiner.client.link import Link, token_metadata
from fedcombiner.client.trust import Trust, tls_trouble
from fedcombiner.servicekit.backoff import Backoff, retry
from fedcombiner.servicekit.errors import DeadlineExceeded, Unavailable
from fedcombiner.servicekit.requests import REQUEST_ID

T = TypeVar("T")

TIMEOUT: Final = 10.0  # seconds an answer may take
_BACKOFF: Final = Backoff(0.2, 3.0)
_AWAY: Final = (Unavailable, DeadlineExceeded)


class Calls:
    """What is asked is asked again for `patience` seconds while there is no answer, unless TLS is why.

    Leave it as a context manager, or `close` it.
    """

    def __init__(
        self, address: str, *, trust: Trust | None = None, token: str | None = None, patience: float = 0.0
    ) -> None:
        self.address = address
        self._patience = patience
        self.link = Link(
            address, metadata=(*token_metadata(token), (REQUEST_ID, uuid.uuid4().hex)), trust=trust
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self.link.close()

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
