"""HTTP connections with an end: deadlines for requests that do not arrive, and a bound on their number.

uvicorn keeps a connection on which no request was completed for ever; a thousand of them use up the files of
the process, and with them the ports that have nothing to do with it.
"""

from __future__ import annotations

import asyncio
import resource
from itertools import islice
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedcombiner.servicekit.shares import by_largest_share

REQUEST_SECONDS: Final = 15.0  # for a request line and headers
BODY_SECONDS: Final = 30.0  # without a byte of a body that was begun
SWEEP_SECONDS: Final = 1.0
MAX_CONNECTIONS: Final = 1000  # of one port
# A request follows its connection at once, so one that has waited for less than this may be about to send it.
YOUNG_SECONDS: Final = 1.0


class Connections:
    """The connections of one port, the oldest first.

    Of too many, one that waits for a request goes: the oldest of the address that has most of those. Requests
    under way are never cut off.
    """

    def __init__(self) -> None:
        self._open: dict[BoundedProtocol, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Keep the deadlines and the bound from now on."""
        loop = asyncio.get_running_loop()
        self._sweep(loop.time())
        self._timer = loop.call_later(SWEEP_SECONDS, self.start)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def add(self, connection: BoundedProtocol) -> None:
        self._open[connection] = None

    def discard(self, connection: BoundedProtocol) -> None:
        self._open.pop(connection, None)

    def _sweep(self, now: float) -> None:
        for connection in [one for one in self._open if one.is_late(now)]:
            connection.cut()
        excess = len(self._open) - most_connections()
        if excess > 0:
            waiting = [one for one in self._open if one.has_waited(now) > YOUNG_SECONDS]
            for connection in islice(by_largest_share(waiting, lambda one: one.address), excess):
                connection.cut()


def most_connections() -> int:
    """How many one port may have: a quarter of the process's files at most, since it has other ports."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if files == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, files // 4)


class BoundedProtocol(H11Protocol):
    """A connection that knows whether it waits for its peer, and since when."""

    def __init__(self, *args: Any, known: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._known = known
        self._moved_at = 0.0
        self.address = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._moved_at = self.loop.time()
        self.address = self.client[0] if self.client else ""
        self._known.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._known.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # What arrives of headers moves no deadline: it may be a byte now and then.
        if not self.is_waiting:
            self._moved_at = self.loop.time()
        super().data_received(data)

    def on_response_complete(self) -> None:
        self._moved_at = self.loop.time()
        super().on_response_complete()

    @property
    def is_waiting(self) -> bool:
        """Whether no request is being served: none has come yet, or not all of its headers."""
        return self.conn.their_state is h11.IDLE

    def has_waited(self, now: float) -> float:
        """Seconds; 0 while a request is being served."""
        return now - self._moved_at if self.is_waiting else 0.0

    def is_late(self, now: float) -> bool:
        if self.is_waiting:
            return self.has_waited(now) > REQUEST_SECONDS
        # A body of which the handler does not want more now is not late.
        wanted = self.conn.their_state is h11.SEND_BODY and not self.flow.read_paused
        return wanted and now - self._moved_at > BODY_SECONDS

    def cut(self) -> None:
        self._known.discard(self)
        self.transport.abort()
