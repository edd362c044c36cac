"""The model store on a local disk.

    <root>/uploads/<id>/{data,meta.json}    complete objects
    <root>/models/<id>/{data,meta.json}
    <root>/packages/<id>/{data,meta.json}
    <root>/tmp/<process>/<random>/          objects in the making, removed with their process

Hashing, writing and reading are done in worker threads. A transfer has at most one batch of chunks in a
thread and one on its way there or from there; an event loop that is faster than the disk waits.
"""

import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from fedcombiner.modelstorage.diskfiles import (
    DATA,
    Part,
    Source,
    copy_object,
    delete_object,
    make_directories,
    read_info,
)
from fedcombiner.modelstorage.diskwriter import DiskWriter
from fedcombiner.modelstorage.readahead import read_ahead
from fedcombiner.modelstorage.reserve import DiskReserve
from fedcombiner.modelstorage.scratch import ScratchArea
from fedcombiner.modelstorage.store import (
    KINDS,
    Kind,
    Leftover,
    ObjectDamaged,
    ObjectInfo,
    ObjectKey,
    ObjectNotFound,
    StoreUnavailable,
    check_size,
    is_id,
)
from fedcombiner.modelstorage.workers import Workers

log = structlog.get_logger(__name__)

_THREADS: Final = 8
_LIST_BATCH: Final = 64


class DiskStore:
    """`ModelStore` in the directory `root`, which is made if it is missing.

    Several stores, in one process or many, may use one root. It must be one file system, with flock across
    all of those processes. While less than `reserve` bytes of it are free, nothing is taken.
    """

    def __init__(self, root: Path, *, reserve: int = 0) -> None:
        self._root = root
        self._reserve = DiskReserve(reserve)
        self._scratch = ScratchArea(root / "tmp")
        self._workers = Workers(_THREADS, "disk-store")

    async def start(self) -> None:
        if self._scratch.is_open:
            return
        await self._workers.run(partial(make_directories, self._root, KINDS))
        await self._workers.run(self._scratch.open)

    async def close(self) -> None:
        await self._workers.drain()
        await self._workers.run(self._scratch.close)
        self._workers.close()

    async def head(self, key: ObjectKey) -> ObjectInfo | None:
        return await self._workers.run(partial(read_info, key, self._directory(key)))

    @asynccontextmanager
    async def writer(self, key: ObjectKey, *, max_bytes: int) -> AsyncIterator[DiskWriter]:
        part = Part(self._scratch.path(), self._reserve)
        writer = DiskWriter(part, key, self._directory(key), max_bytes, self._workers)
        try:
            yield writer
        finally:
            await self._workers.finish(writer.close())

    def reader(self, key: ObjectKey, offset: int = 0) -> AsyncGenerator[bytes, None]:
        return read_ahead(self._workers, Source(key, self._directory(key), offset))

    @asynccontextmanager
    async def local_file(self, key: ObjectKey, *, max_bytes: int | None = None) -> AsyncIterator[Path]:
        check_size(await self.head(key), key, max_bytes)
        yield self._directory(key) / DATA

    async def copy(self, source: ObjectKey, target: ObjectKey) -> ObjectInfo:
        places = self._directory(source), target, self._directory(target), self._scratch.path()
        copied = await self._workers.run(partial(copy_object, *places))
        if copied is None:
            raise ObjectNotFound(source)
        return copied

    async def delete(self, key: ObjectKey) -> bool:
        return await self._workers.run(partial(delete_object, self._directory(key), self._scratch.path()))

    async def list(self, kind: Kind, prefix: str = "") -> AsyncGenerator[ObjectInfo, None]:
        names = await self._workers.run(partial(self._names, kind, prefix))
        for start in range(0, len(names), _LIST_BATCH):
            batch = names[start : start + _LIST_BATCH]
            for info in await self._workers.run(partial(self._infos, kind, batch)):
                yield info

    async def sweep(
        self, kind: Kind, older_than: timedelta, *, dry_run: bool
    ) -> AsyncGenerator[Leftover, None]:
        """Nothing: what a dead process has left goes when the next one starts."""
        nothing: Sequence[Leftover] = ()
        for leftover in nothing:
            yield leftover

    async def ping(self) -> None:
        await self._workers.run(self._scratch.probe)
        await self._workers.run(partial(self._reserve.check, self._scratch.directory))

    def _directory(self, key: ObjectKey) -> Path:
        if not self._scratch.is_open:
            raise StoreUnavailable("the model store has not started")
        return self._root / key.kind / key.id

    def _names(self, kind: Kind, prefix: str) -> Sequence[str]:
        """What somebody else left there (a file of the file manager, a backup) is no object."""
        return sorted(
            name for name in os.listdir(self._root / kind) if name.startswith(prefix) and is_id(name)
        )

    def _infos(self, kind: Kind, names: Sequence[str]) -> Sequence[ObjectInfo]:
        keys = (ObjectKey(kind, name) for name in names)
        infos = (self._info(key) for key in keys)
        return [info for info in infos if info is not None]

    def _info(self, key: ObjectKey) -> ObjectInfo | None:
        try:
            return read_info(key, self._directory(key))
        except ObjectDamaged as error:
            log.warning("object is not listed", reason=error.message)
            return None
