"""What stands in for the gateway where HAProxy is not installed: TCP connections to the ready replicas.

It knows no calls, so it cannot take one to another replica: a client whose replica dies loses its connection.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

import httpx

from tests.faults.wires import forward

EVERY_S: Final = 0.5
FAILURES: Final = 3
DRAINING: Final = 404


@dataclass(eq=False)
class Replica:
    """`address` and `ready_at` as the gateway is told them."""

    address: str
    ready_at: str
    failures: int = FAILURES
    open: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def up(self) -> bool:
        return self.failures < FAILURES


class Switch:
    """Hands each new connection to the next replica that is up; one that goes down loses all of its own, and
    one that drains keeps them.

    With no replica up connections are refused by being closed.
    """

    def __init__(self, address: str, replicas: Sequence[Replica]) -> None:
        self._host, _, self._port = address.rpartition(":")
        self._replicas = replicas
        self._turns = itertools.count()
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self._host, int(self._port))
        self._checks = [asyncio.create_task(self._check(replica)) for replica in self._replicas]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for check in self._checks:
            check.cancel()
        for replica in self._replicas:
            _cut(replica)
        await asyncio.wait([*self._checks, *self._serving])

    async def _check(self, replica: Replica) -> None:
        async with httpx.AsyncClient(timeout=1.0) as http:
            while True:
                try:
                    status = (await http.get(replica.ready_at)).status_code
                except httpx.HTTPError:
                    status = 0
                if status == DRAINING:
                    replica.failures = FAILURES  # nothing new, and what is open it ends by itself
                else:
                    replica.failures = 0 if status == 200 else replica.failures + 1
                    if not replica.up:
                        _cut(replica)
                await asyncio.sleep(EVERY_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        up = [replica for replica in self._replicas if replica.up]
        try:
            if up:
                replica = up[next(self._turns) % len(up)]
                await forward(reader, writer, replica.address, replica.open)
        except OSError:
            replica.failures = FAILURES  # until the next check says otherwise
        finally:
            writer.transport.abort()


def _cut(replica: Replica) -> None:
    for writer in replica.open:
        writer.transport.abort()
