"""The harness's end of the fault injection: names a step, learns which process came to it, lets it go on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ACKNOWLEDGED_S = 30.0


@dataclass(frozen=True)
class Point:
    """A step of a service, before or after it happens."""

    role: str
    step: str
    when: str

    def __str__(self) -> str:
        return f"{self.role}: {self.when} {self.step}"


@dataclass(eq=False)
class _Peer:
    """One process under test."""

    role: str
    pid: int
    writer: asyncio.StreamWriter

    def say(self, **words: object) -> None:
        self.writer.write(json.dumps(words).encode() + b"\n")


class Conductor:
    """At most one point is armed at a time, in all processes of its role, also those that start later. The
    first that comes to it is stopped there; the others are let through.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._peers: set[_Peer] = set()
        self._number = 0
        self._point: Point | None = None
        self._armed: set[tuple[int, int]] = set()  # (number, pid)
        self._reached: asyncio.Future[_Peer] | None = None
        self._changed = asyncio.Condition()
        self._handlers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self._socket)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for peer in self._peers:
            peer.writer.close()

    async def arm(self, point: Point) -> None:
        """Returns when all processes of the role that are connected know; none may be stopped."""
        self.arm_next(point)
        wanted = {(self._number, peer.pid) for peer in self._peers if peer.role == point.role}
        async with asyncio.timeout(ACKNOWLEDGED_S), self._changed:
            await self._changed.wait_for(lambda: wanted <= self._armed)

    def arm_next(self, point: Point | None) -> None:
        """Name the next point (None: no more), then let go who stands at the last one."""
        last, self._number = self._number, self._number + 1
        self._point = point
        self._reached = asyncio.get_running_loop().create_future()
        for peer in self._peers:
            self._tell(peer)
            peer.say(go=last)

    async def reached(self) -> int:
        """The pid of the process that stopped at the point."""
        assert self._reached is not None, "arm first"
        return (await asyncio.shield(self._reached)).pid

    def _tell(self, peer: _Peer) -> None:
        mine = self._point if self._point and self._point.role == peer.role else None
        step, when = (mine.step, mine.when) if mine else ("", "")
        peer.say(arm=step, when=when, number=self._number)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = json.loads(await reader.readline())
        peer = _Peer(hello["role"], hello["pid"], writer)
        self._peers.add(peer)
        self._tell(peer)
        try:
            while line := await reader.readline():
                await self._hear(peer, json.loads(line))
        except ConnectionError:
            pass  # it was killed
        finally:
            self._peers.discard(peer)
            writer.close()

    async def _hear(self, peer: _Peer, words: Mapping[str, Any]) -> None:
        if "armed" in words:
            async with self._changed:
                self._armed.add((words["armed"], peer.pid))
                self._changed.notify_all()
        elif words["reached"] == self._number and self._reached is not None and not self._reached.done():
            self._point = None
            self._reached.set_result(peer)
            for other in self._peers - {peer}:
                other.say(arm="", when="", number=self._number)
        else:
            peer.say(go=words["reached"])
