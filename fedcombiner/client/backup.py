"""Saving the state of a stack in a file, and putting it back."""

from __future__ import annotations

import asyncio
import gzip
import os
import uuid
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedcombiner.client.calls import Calls
from fedcombiner.client.errors import TransferBroken
from fedcombiner.wire.backup import KINDS, MAX_LINE_BYTES, Checker, End, Header, Lines, NotABackup
from fedcombiner.wire.pb.combiner.v1 import upkeep_pb2 as pb
from fedcombiner.wire.pb.combiner.v1 import upkeep_pb2_grpc

if TYPE_CHECKING:
    from fedcombiner.wire.pb.combiner.v1.upkeep_pb2_grpc import UpkeepAsyncStub

_PORTION: Final = 1 << 20  # bytes; far below what a server takes in one message
# What goes on at once when it is put back comes last: a job after its model and its answers, a session after
# its jobs and its results.
_ORDER: Final = ("model", "answers", "job", "results", "session", "settings", "newest")
assert set(_ORDER) == set(KINDS)


@dataclass(frozen=True, slots=True)
class BackupFile:
    """A whole backup."""

    header: Header
    end: End
    counts: dict[str, int]  # by kind


class BackupCalls(Calls):
    async def backup(self, target: Path) -> BackupFile:
        """Save the shared state in a file, which appears whole or not at all, readable by its owner only.

        Raises:
            FileExistsError: there is one of that name.
            TransferBroken: the server sent no whole backup.
            OSError: the file cannot be written.
        """
        if target.exists():
            raise FileExistsError(17, "exists already; choose another name", str(target))
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        try:
            saved = await self._reach(lambda: self._save(part))
            await asyncio.to_thread(os.replace, part, target)
        finally:
            part.unlink(missing_ok=True)
        return saved

    async def restore(self, source: Path, *, replace: bool = False) -> pb.RestoreReply:
        """Put back what `backup` saved, into a state that is empty or to be replaced.

        Raises:
            NotABackup: the file is no whole backup; nothing was sent.
            FailedPrecondition: the state is not empty, or at work; the backup is of another layout.
        """
        backup = await asyncio.to_thread(read_backup, source)
        stub: UpkeepAsyncStub = upkeep_pb2_grpc.UpkeepStub(self.link)
        return await self._reach(lambda: stub.Restore(_requests(source, backup.header, replace)))

    async def _save(self, part: Path) -> BackupFile:
        stub: UpkeepAsyncStub = upkeep_pb2_grpc.UpkeepStub(self.link)
        lines, reader = Lines(), _Reader()
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with gzip.open(os.fdopen(descriptor, "wb"), "wb", compresslevel=6) as file:
            try:
                async for message in stub.Backup(pb.BackupRequest()):
                    for line in lines.feed(message.data):
                        reader.take(line)
                    await asyncio.to_thread(file.write, message.data)
                lines.close()
                return reader.whole()
            except NotABackup as error:
                raise TransferBroken(f"what the server sent is no backup: {error}") from error


class _Reader:
    def __init__(self) -> None:
        self._checker = Checker()
        self._counts = dict.fromkeys(KINDS, 0)

    def take(self, line: bytes) -> None:
        record = self._checker.take(line)
        if record is not None:
            self._counts[record["kind"]] += 1

    def whole(self) -> BackupFile:
        return BackupFile(self._checker.header, self._checker.end, self._counts)


def read_backup(source: Path) -> BackupFile:
    """Read a backup to its end. Blocking.

    Raises:
        NotABackup: it is none, or not a whole one.
        OSError: the file cannot be read.
    """
    reader = _Reader()
    for line in _lines(source):
        reader.take(line)
    return reader.whole()


def _lines(source: Path) -> Iterator[bytes]:
    try:
        with gzip.open(source, "rb") as file:
            while line := file.readline(MAX_LINE_BYTES):
                yield line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise NotABackup(f"it is cut off, or was never one ({error})") from error


def _portions(source: Path, header: Header) -> Iterator[bytes]:
    """The lines in the order in which they are put back, joined up to about 1 MiB."""
    portion = bytearray(header.encode())
    for kind in _ORDER:
        start = f'{{"kind":"{kind}"'.encode()
        for line in _lines(source):
            if not line.startswith(start):
                continue
            portion += line
            while len(portion) >= _PORTION:
                yield bytes(portion[:_PORTION])
                del portion[:_PORTION]
    yield bytes(portion)


async def _requests(source: Path, header: Header, replace: bool) -> AsyncIterator[pb.RestoreRequest]:
    portions = _portions(source, header)
    while (portion := await asyncio.to_thread(next, portions, None)) is not None:
        yield pb.RestoreRequest(data=portion, replace=replace)
