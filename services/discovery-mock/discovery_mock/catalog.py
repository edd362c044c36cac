"""Compute packages in the object store, and which of them clients are given.

The store knows only objects that never change, of which the first of a name wins. That is enough:

    archive-<sha256>      the bytes of a package
    package-<sha256>      what it is called: makes it a package
    active-<number>       which one is given from then on: the highest number counts
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from fedcombiner.modelstorage.store import (
    STORE_AWAY,
    ModelStore,
    ObjectInfo,
    ObjectKey,
    ObjectNotFound,
    StoreUnavailable,
)
from fedcombiner.servicekit.errors import Aborted, InvalidArgument, NotFound, shown
from fedcombiner.wire.chunks import CHUNK_SIZE

FRESH_S: Final = 5.0
LOOK_S: Final = 3.0
_MAX_NOTE_BYTES: Final = 4096
_ATTEMPTS: Final = 10
# Of `active-` notes: whoever has just listed them must still be able to read the last one.
_KEPT: Final = 5
_SHORTEST_ID: Final = 6


@dataclass(frozen=True, slots=True)
class Package:
    """`id` is the sha256 of the archive in hex, which is also its checksum; `size` is in bytes."""

    id: str
    name: str
    size: int
    created: datetime

    @property
    def file_name(self) -> str:
        """As clients store it: by its ending they know how to unpack it."""
        return f"{self.name}.tgz"


class PackageCatalog:
    """Packages in `store`, which is started and closed by whoever made it.

    All methods may raise `StoreUnavailable` and `StoreFull`.
    """

    def __init__(self, store: ModelStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._looking = asyncio.Lock()
        self._looked = float("-inf")
        self._active: Package | None = None
        self._trouble = ""

    async def put(self, archive: Path, name: str) -> Package:
        """Keep a checked archive. The same bytes again are the package that is there, with its first name."""
        size = archive.stat().st_size
        digest = await self._copy(archive, size)
        await self._write(f"package-{digest}", {"name": name, "size": size})
        return await self._read(digest)

    async def all(self) -> list[Package]:
        """The oldest first."""
        packages = [await self._read(_without_prefix(note)) for note in await self._notes("package-")]
        return sorted(packages, key=lambda package: (package.created, package.id))

    async def find(self, wanted: str) -> Package:
        """The newest package of this name, or the one whose id begins so.

        Raises:
            NotFound: there is none.
            InvalidArgument: there are several.
        """
        packages = await self.all()
        named = [package for package in packages if wanted in (package.name, package.file_name)]
        begins = [package for package in packages if package.id.startswith(wanted)]
        if named:
            return named[-1]
        if len(wanted) < _SHORTEST_ID or not begins:
            raise NotFound(f"there is no package {shown(wanted)}")
        if len(begins) > 1:
            raise InvalidArgument("package", wanted, "more of the id, as several begin so")
        return begins[0]

    def reader(self, package: Package, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes of its archive from `offset` on, in chunks. Raises ObjectNotFound at the first one."""
        return self._store.reader(ObjectKey("packages", f"archive-{package.id}"), offset)

    async def activate(self, package: Package) -> None:
        """Give it to clients from now on. Raises Aborted if others do so again and again at the same time."""
        for _ in range(_ATTEMPTS):
            notes = await self._notes("active-")
            number = int(_without_prefix(notes[-1])) + 1 if notes else 1
            # The token tells our note from another one that says the same.
            said = {"package": package.id, "token": uuid.uuid4().hex}
            if await self._write(f"active-{number:012}", said):
                self._know(package)
                for note in notes[: 1 - _KEPT]:
                    await self._store.delete(note.key)
                return
        raise Aborted("others activate packages at the same time; try again")

    async def active(self) -> Package | None:
        """Which one clients are given, None if none was ever activated.

        As it was up to `FRESH_S` ago, or when the store was last there. Raises StoreUnavailable if it was not
        there yet.
        """
        async with self._looking:
            if self._clock() - self._looked >= FRESH_S:
                await self._look()
        if self._trouble and self._active is None:
            raise StoreUnavailable(self._trouble)
        return self._active

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(LOOK_S):
                self._know(await self._newest())
        except TimeoutError:
            self._trouble = "the object store does not answer"
        except STORE_AWAY as error:
            self._trouble = error.message
        self._looked = self._clock()

    def _know(self, active: Package | None) -> None:
        self._active, self._trouble, self._looked = active, "", self._clock()

    async def _newest(self) -> Package | None:
        notes = await self._notes("active-")
        if not notes:
            return None
        said, _ = await self._read_note(notes[-1].key)
        return await self._read(str(said["package"]))

    async def _notes(self, prefix: str) -> list[ObjectInfo]:
        async with aclosing(self._store.list("packages", prefix)) as notes:
            return [note async for note in notes]

    async def _copy(self, archive: Path, size: int) -> str:
        """Its sha256, once it is stored."""
        with archive.open("rb") as file:
            digest = (await asyncio.to_thread(hashlib.file_digest, file, "sha256")).hexdigest()
            file.seek(0)
            key = ObjectKey("packages", f"archive-{digest}")
            async with self._store.writer(key, max_bytes=size) as writer:
                while chunk := await asyncio.to_thread(file.read, CHUNK_SIZE):
                    await writer.write(chunk)
                await writer.commit()
        return digest

    async def _read(self, digest: str) -> Package:
        said, info = await self._read_note(ObjectKey("packages", f"package-{digest}"))
        return Package(digest, str(said["name"]), int(said["size"]), info.modified)

    async def _read_note(self, key: ObjectKey) -> tuple[Mapping[str, Any], ObjectInfo]:
        info = await self._store.head(key)
        if info is None:
            raise ObjectNotFound(key)
        async with aclosing(self._store.reader(key)) as chunks:
            return json.loads(b"".join([chunk async for chunk in chunks])), info

    async def _write(self, name: str, said: Mapping[str, object]) -> bool:
        """True if the note is ours now, False if there was one of that name."""
        text = json.dumps(said).encode()
        async with self._store.writer(ObjectKey("packages", name), max_bytes=_MAX_NOTE_BYTES) as writer:
            await writer.write(text)
            stored = await writer.commit()
        return stored.sha256 == hashlib.sha256(text).hexdigest()


def _without_prefix(note: ObjectInfo) -> str:
    return note.key.id.partition("-")[2]
