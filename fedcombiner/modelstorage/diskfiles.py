"""The files of the disk store: what is done to them, blocking, in worker threads.

An object is the directory `<kind>/<id>` with two files, `data` and `meta.json`. It is made elsewhere and
renamed into place, which POSIX does for all to see at once, and refuses if the target is a directory that is
not empty: so the first commit of a key wins without any lock.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fedcombiner.modelstorage.readahead import BATCH_CHUNKS
from fedcombiner.modelstorage.reserve import DiskReserve
from fedcombiner.modelstorage.store import (
    ObjectDamaged,
    ObjectInfo,
    ObjectKey,
    ObjectNotFound,
    StoreUnavailable,
)
from fedcombiner.wire.chunks import CHUNK_SIZE

DATA: Final = "data"
META: Final = "meta.json"
# More than one only because the object that was in the way may be deleted before it is read.
_PUBLISH_ATTEMPTS: Final = 3
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_TAKEN: Final = (errno.EEXIST, errno.ENOTEMPTY)
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK)


class Part:
    """An object in the making, in a directory of its own. Nothing is opened before the first `append`."""

    def __init__(self, directory: Path, reserve: DiskReserve) -> None:
        self._directory = directory
        self._reserve = reserve
        self._descriptor = -1
        self._hash = hashlib.sha256()
        self._size = 0

    @property
    def is_open(self) -> bool:
        """Whether there is something to discard."""
        return self._descriptor >= 0

    def append(self, batch: Sequence[memoryview]) -> None:
        """Raises StoreFull if the disk has no room for it."""
        self._reserve.check(self._directory.parent, sum(map(len, batch)))
        if not self.is_open:
            self._directory.mkdir()
            self._descriptor = os.open(self._directory / DATA, _NEW_FILE, 0o644)
        for view in batch:
            self._hash.update(view)
            write_all(self._descriptor, view)
            self._size += len(view)

    def sync(self) -> None:
        """Bring to the disk what was appended so far; may run beside `append`."""
        os.fdatasync(self._descriptor)

    def publish(self, last: Sequence[memoryview], key: ObjectKey, target: Path) -> ObjectInfo:
        """Append the `last` batch and make the object durable and visible, or keep the one that is there.

        Answers which it is. Nothing is left to discard.
        """
        try:
            self.append(last)
            os.fsync(self._descriptor)
            info = ObjectInfo(key, self._size, self._hash.hexdigest(), datetime.now(UTC))
            return _publish(self._directory, info, target)
        finally:
            self.discard()

    def discard(self) -> None:
        """Close and remove what there is."""
        if self.is_open:
            os.close(self._descriptor)
            self._descriptor = -1
        shutil.rmtree(self._directory, ignore_errors=True)


class Source:
    """A complete object being read. Nothing is opened before the first `read`."""

    def __init__(self, key: ObjectKey, directory: Path, offset: int) -> None:
        self._key = key
        self._directory = directory
        self._position = offset
        self._descriptor = -1
        self._size = 0
        self._opened = False

    def read(self) -> Sequence[bytes]:
        """The next few chunks, none at the end.

        Raises:
            ObjectNotFound: the object does not exist.
            ObjectDamaged: the data has another size than the record says.
            StoreUnavailable: the data ends early.
        """
        if not self._opened:
            self._open()
        chunks = [self._chunk() for _ in range(BATCH_CHUNKS) if self._position < self._size]
        if self.exhausted:
            self.close()
        return chunks

    @property
    def exhausted(self) -> bool:
        return self._opened and self._position >= self._size

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        info = read_info(self._key, self._directory)
        if info is None:
            raise ObjectNotFound(self._key)
        try:
            self._descriptor = os.open(self._directory / DATA, os.O_RDONLY)
        except FileNotFoundError:
            raise ObjectNotFound(self._key) from None
        self._size = os.fstat(self._descriptor).st_size
        if self._size != info.size:
            raise ObjectDamaged(f"{self._key} has {self._size} bytes, its record says {info.size}")
        self._opened = True

    def _chunk(self) -> bytes:
        chunk = os.pread(self._descriptor, CHUNK_SIZE, self._position)
        if not chunk:
            raise StoreUnavailable(f"{self._key} ends at byte {self._position} of {self._size}")
        self._position += len(chunk)
        return chunk


def read_info(key: ObjectKey, directory: Path) -> ObjectInfo | None:
    """What the object's own record says, None if there is no object.

    Raises:
        ObjectDamaged: the record cannot be read.
        StoreUnavailable: the whole store is gone (a volume that is not mounted).
    """
    try:
        record = json.loads((directory / META).read_bytes())
        return ObjectInfo(key, record["size"], record["sha256"], datetime.fromisoformat(record["modified"]))
    except FileNotFoundError:
        _check_store(directory)
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ObjectDamaged(f"the record of {key} is damaged") from error


def copy_object(source: Path, key: ObjectKey, target: Path, directory: Path) -> ObjectInfo | None:
    """Commit the bytes of `source` as `target`, by a link where there are links; None without a source."""
    info = read_info(key, source)
    if info is None:
        return None
    directory.mkdir()
    try:
        _link_or_copy(source / DATA, directory / DATA)
        copied = ObjectInfo(key, info.size, info.sha256, datetime.now(UTC))
        return _publish(directory, copied, target)
    except FileNotFoundError:
        if source.exists():
            raise
        return None
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def delete_object(directory: Path, trash: Path) -> bool:
    """Remove an object at once; False if there is none. An open file of it stays readable."""
    try:
        os.rename(directory, trash)
    except FileNotFoundError:
        _check_store(directory)
        return False
    _sync_directory(directory.parent)
    shutil.rmtree(trash, ignore_errors=True)
    return True


def make_directories(root: Path, names: Sequence[str]) -> None:
    """Make directories that survive a crash of the machine."""
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / name).mkdir(exist_ok=True)
    _sync_directory(root)
    _sync_directory(root.parent)


def _check_store(directory: Path) -> None:
    """Nobody may take a store that is away for one that lacks an object."""
    if not directory.parent.is_dir():
        raise StoreUnavailable(f"there is no {directory.parent.name} directory in the model store")


def _publish(directory: Path, info: ObjectInfo, target: Path) -> ObjectInfo:
    _write_record(directory / META, info)
    _sync_directory(directory)
    for _ in range(_PUBLISH_ATTEMPTS):
        stored = info if _rename(directory, target) else read_info(info.key, target)
        if stored:
            # Also for one that was there before: its own committer may not have come this far yet.
            _sync_directory(target.parent)
            return stored
    raise StoreUnavailable(f"{info.key} is in the way of itself, without a record")


def _rename(directory: Path, target: Path) -> bool:
    try:
        os.rename(directory, target)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        return False
    return True


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)
        _sync(target, os.O_RDONLY)


def _write_record(path: Path, info: ObjectInfo) -> None:
    record = {"size": info.size, "sha256": info.sha256, "modified": info.modified.isoformat()}
    descriptor = os.open(path, _NEW_FILE, 0o644)
    try:
        write_all(descriptor, memoryview(json.dumps(record).encode()))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, view: memoryview) -> None:
    """Write the whole of `view`, which `os.write` does not promise."""
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_directory(path: Path) -> None:
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
