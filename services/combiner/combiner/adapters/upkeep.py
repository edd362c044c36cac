"""House-keeping of the shared state: what retention no longer keeps, and whose turn it is."""

from __future__ import annotations

from combiner.adapters.connection import Connection
from combiner.ports import Expired, Memory


class RedisUpkeep:
    """`ports.Upkeep`."""

    def __init__(self, connection: Connection) -> None:
        self._run = connection.run

    async def born_ms(self) -> int:
        return int(await self._run("born"))

    async def expired(self, most: int) -> Expired:
        return Expired(*await self._run("expired", most=most))

    async def purge(self, most: int) -> Expired:
        """A call that is repeated because its reply was lost removes the next ones, and does not tell the
        first.
        """
        return Expired(*await self._run("purge", most=most))

    async def memory(self) -> Memory:
        return Memory(*await self._run("memory"))

    async def begin(self, replica: str, *, hold_ms: int, every_ms: int) -> int:
        return int(await self._run("upkeep_begin", replica=replica, hold_ms=hold_ms, every_ms=every_ms))

    async def done(self, replica: str, *, every_ms: int) -> None:
        await self._run("upkeep_done", replica=replica, every_ms=every_ms)
