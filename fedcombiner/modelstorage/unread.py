"""Downloads that were given up because nobody reads them, as long as they hold memory."""

import asyncio
from typing import Any, TypeAlias

import grpc.aio
import structlog

from fedcombiner.modelstorage.lanes import Event
from fedcombiner.servicekit.sockets import close_connection

log = structlog.get_logger(__name__)

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Unread:
    """At most `most` of them.

    gRPC sends an error behind the data that the peer has not taken, and keeps that until the peer takes it
    or its connection ends. It can reset no single call of a server, so with one too many the connection of
    the oldest is closed. A client takes that for UNAVAILABLE.
    """

    def __init__(self, most: int, happened: Event) -> None:
        self._most = most
        self._happened = happened
        self._peers: dict[_Context, str] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._peers)

    def add(self, context: _Context) -> None:
        """A call that ends with an error now, although its peer has not taken what was sent."""
        self._peers[context] = context.peer()
        # The stubs call for a class where any function will do.
        context.add_done_callback(self._forget)  # type: ignore[arg-type]
        if len(self._peers) > self._most and not self._closing:
            task = asyncio.create_task(self._close_oldest())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _forget(self, context: _Context) -> None:
        self._peers.pop(context, None)

    async def _close_oldest(self) -> None:
        while len(self._peers) > self._most:
            peer = next(iter(self._peers.values()))
            found = await asyncio.to_thread(close_connection, peer)
            self._happened("disconnected")
            log.warning("closed the connection of a client that reads no downloads", peer=peer, found=found)
            # Its calls are told to end in a moment; whatever becomes of them, it has had its turn.
            self._peers = {context: other for context, other in self._peers.items() if other != peer}
