"""Inside a service under test: adapters around its back ends that stop at a named step and wait.

The harness (`tests.faults.conductor`) says over a Unix socket at which step; a process that comes to it says
so and goes on when it is told to, if it still lives then. One JSON object a line:

    to the harness:    {"role": ..., "pid": ...}   {"armed": n}   {"reached": n}
    from the harness:  {"arm": "jobs.commit", "when": "before", "number": n}   {"go": n}

A step is one call of a port: `jobs.commit`, `store.head`. `before` it nothing has happened; `after` it
everything has, and this process does not know it yet.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from combiner.ports import Shared

from fedcombiner.modelstorage.store import Buffer, Kind, ModelStore, ObjectInfo, ObjectKey, ObjectWriter

SOCKET = "FAULTS_SOCKET"
PORTS = ("jobs", "sessions", "models", "roster", "tasks", "leases", "settings")
# Asking for work that is not there is no step.
CLAIMS = frozenset({"jobs.claim", "sessions.claim", "tasks.claim"})


class Injector:
    """Stops this process at the step that the harness has named."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._armed: tuple[str, str, int] | None = None
        self._went: dict[int, asyncio.Event] = {}
        self._listening: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, role: str) -> Injector:
        made = cls(*await asyncio.open_unix_connection(os.environ[SOCKET]))
        made._say(role=role, pid=os.getpid())
        made._listening = asyncio.create_task(made._listen(), name="listen to the conductor")
        return made

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
        self._writer.close()

    def _say(self, **words: object) -> None:
        self._writer.write(json.dumps(words).encode() + b"\n")

    async def _listen(self) -> None:
        while line := await self._reader.readline():
            self._told(json.loads(line))

    def _told(self, words: Mapping[str, Any]) -> None:
        if "go" in words:
            self._went.setdefault(words["go"], asyncio.Event()).set()
            return
        self._armed = (words["arm"], words["when"], words["number"]) if words["arm"] else None
        self._say(armed=words["number"])

    async def step(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        await self.at(name, "before")
        result = await call()
        if result or name not in CLAIMS:
            await self.at(name, "after")
        return result

    async def at(self, name: str, when: str) -> None:
        if self._armed is None or self._armed[:2] != (name, when):
            return
        number = self._armed[2]
        self._armed = None
        went = self._went.setdefault(number, asyncio.Event())
        self._say(reached=number)
        await went.wait()

    def wrap(self, shared: Shared, store: ModelStore) -> tuple[Shared, ModelStore]:
        state: Any = shared
        for name in PORTS:
            setattr(state, name, _Port(name, getattr(state, name), self))
        return shared, FaultyStore(store, self)


class _Port:
    """One of the ports of the shared state."""

    def __init__(self, name: str, port: Any, injector: Injector) -> None:
        self._name = name
        self._port = port
        self._injector = injector

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        if not inspect.iscoroutinefunction(method):
            return method

        async def through(*args: Any, **kwargs: Any) -> Any:
            return await self._injector.step(f"{self._name}.{name}", lambda: method(*args, **kwargs))

        return through


class FaultyStore:
    """`ModelStore` around another one."""

    def __init__(self, store: ModelStore, injector: Injector) -> None:
        self._store = store
        self._injector = injector

    async def start(self) -> None:
        await self._store.start()

    async def close(self) -> None:
        await self._store.close()

    async def ping(self) -> None:
        await self._store.ping()

    async def head(self, key: ObjectKey) -> ObjectInfo | None:
        found: ObjectInfo | None = await self._injector.step("store.head", lambda: self._store.head(key))
        return found

    async def copy(self, source: ObjectKey, target: ObjectKey) -> ObjectInfo:
        copied: ObjectInfo = await self._injector.step("store.copy", lambda: self._store.copy(source, target))
        return copied

    async def delete(self, key: ObjectKey) -> bool:
        return bool(await self._injector.step("store.delete", lambda: self._store.delete(key)))

    def list(self, kind: Kind, prefix: str = "") -> AsyncGenerator[ObjectInfo, None]:
        return self._store.list(kind, prefix)

    @asynccontextmanager
    async def _writer(self, key: ObjectKey, max_bytes: int) -> AsyncIterator[ObjectWriter]:
        async with self._store.writer(key, max_bytes=max_bytes) as writer:
            yield _Writer(writer, self._injector)

    def writer(self, key: ObjectKey, *, max_bytes: int) -> AbstractAsyncContextManager[ObjectWriter]:
        return self._writer(key, max_bytes)

    async def reader(self, key: ObjectKey, offset: int = 0) -> AsyncGenerator[bytes, None]:
        async for chunk in self._store.reader(key, offset):
            await self._injector.at("store.read", "after")
            yield chunk

    @asynccontextmanager
    async def local_file(self, key: ObjectKey, *, max_bytes: int | None = None) -> AsyncIterator[Path]:
        await self._injector.at(f"store.file.{key.kind}", "before")
        async with self._store.local_file(key, max_bytes=max_bytes) as path:
            await self._injector.at(f"store.file.{key.kind}", "after")
            yield path


class _Writer:
    """`ObjectWriter` around another one."""

    def __init__(self, writer: ObjectWriter, injector: Injector) -> None:
        self._writer = writer
        self._injector = injector

    async def write(self, data: Buffer) -> None:
        await self._injector.step("store.write", lambda: self._writer.write(data))

    async def commit(self) -> ObjectInfo:
        info: ObjectInfo = await self._injector.step("store.commit", self._writer.commit)
        return info
