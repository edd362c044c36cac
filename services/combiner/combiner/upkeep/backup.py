"""The shared state as a file, and back. Models are in the object store; that they are there is looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from combiner.ports import Archive, Conflict, NotEmpty, Shared, Unreadable
from combiner.tuning import KNOWN
from fedcombiner.modelstorage.store import ModelStore, ObjectKey, is_id
from fedcombiner.servicekit.errors import FailedPrecondition
from fedcombiner.version import __version__
from fedcombiner.wire.backup import PARTS, Header, Lines, NotABackup, Writer, decode

_PORTION: Final = 1 << 20  # bytes
_MODEL: Final = "model"


@dataclass
class Restored:
    restored: Counter[str] = field(default_factory=Counter)  # by kind
    known: Counter[str] = field(default_factory=Counter)
    missing_models: list[str] = field(default_factory=list)


class Backups:
    def __init__(self, shared: Shared, store: ModelStore) -> None:
        self._shared = shared
        self._store = store

    async def make(self) -> AsyncIterator[bytes]:
        """The backup in portions of about 1 MiB. Rounds may go on meanwhile.

        Raises StateUnavailable, or what `ModelStore` raises: then there is no end, and so no backup.
        """
        writer, portion, missing = Writer(), bytearray(), list[str]()
        header = Header(
            self._shared.archive.schema, datetime.now(UTC).isoformat(timespec="seconds"), __version__
        )
        portion += writer.header(header)
        async for record in self._shared.archive.dump():
            portion += writer.record(record)
            if record["kind"] == _MODEL and not await self._has(record["id"]):
                missing.append(record["id"])
            while len(portion) >= _PORTION:
                yield bytes(portion[:_PORTION])
                del portion[:_PORTION]
        yield bytes(portion + writer.end(missing))

    async def restore(self, data: AsyncIterator[bytes], *, replace: bool) -> Restored:
        """Put back what was backed up. What was put back when an error comes stays.

        Raises:
            FailedPrecondition: the state is not empty, or is at work; or this version cannot read the data.
        """
        lines, restoring = Lines(), _Restoring(self._shared, replace)
        try:
            async for some in data:
                for line in lines.feed(some):
                    record = await restoring.take(line)
                    if record is not None and record["kind"] == _MODEL and not await self._has(record["id"]):
                        restoring.result.missing_models.append(record["id"])
            lines.close()
            return await restoring.finish()
        except (NotABackup, Unreadable) as error:
            raise FailedPrecondition(f"the backup cannot be restored: {error}") from error
        except NotEmpty as error:
            raise FailedPrecondition(
                f"the state is not empty ({error}): restore into an empty one, or replace it (--replace)"
            ) from error
        except Conflict as error:
            raise FailedPrecondition(
                f"{error}; cancel them first (`combiner session cancel`, `combiner job cancel`), or wait"
            ) from error

    async def _has(self, model_id: str) -> bool:
        return is_id(model_id) and await self._store.head(ObjectKey("models", model_id)) is not None


class _Restoring:
    """Takes the lines of one backup, the header first."""

    def __init__(self, shared: Shared, replace: bool) -> None:
        self._shared = shared
        self._archive: Archive = shared.archive
        self._replace = replace
        self._numbered = 0
        self._newest: Mapping[str, str] = {}
        self.result = Restored()

    async def take(self, line: bytes) -> Mapping[str, Any] | None:
        """The record of the line, put back; None of one that was known, and of the header."""
        self._numbered += 1
        if self._numbered == 1:
            await self._begin(Header.decode(line))
            return None
        record = decode(line, self._numbered)
        try:
            return record if await self._put(record) else None
        except Unreadable as error:
            raise Unreadable(f"line {self._numbered}: {error}") from error

    async def finish(self) -> Restored:
        if not self._numbered:
            raise NotABackup("it is empty")
        committed, put = (str(self._newest.get(name, "")) for name in ("committed", "put"))
        await self._archive.finish(committed=committed, put=put)
        return self.result

    async def _begin(self, header: Header) -> None:
        if header.schema != self._archive.schema:
            raise NotABackup(
                f"its state has layout {header.schema}, this combiner {self._archive.schema}: restore it with"
                f" version {header.software}, which made it"
            )
        await self._archive.begin(replace=self._replace)

    async def _put(self, record: Mapping[str, Any]) -> bool:
        kind = str(record.get("kind"))
        if kind == "newest":
            self._newest = record
        elif kind == "settings":
            await self._put_settings(record)
        elif kind in PARTS:
            await self._archive.put(record)
        else:
            new = await self._archive.put(record)
            (self.result.restored if new else self.result.known)[kind] += 1
            return new
        return False

    async def _put_settings(self, record: Mapping[str, Any]) -> None:
        values = record.get("values")
        if not isinstance(values, dict):
            raise Unreadable("settings without values")
        known = {str(key): str(value) for key, value in values.items() if key in KNOWN}
        await self._shared.settings.put(known)
        self.result.restored["setting"] += len(known)
