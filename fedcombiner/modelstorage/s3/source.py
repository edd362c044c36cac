"""A complete object being read from a bucket: blocking, for worker threads."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from urllib3 import BaseHTTPResponse

from fedcombiner.modelstorage.diskfiles import write_all
from fedcombiner.modelstorage.readahead import BATCH_CHUNKS
from fedcombiner.modelstorage.s3.bucket import S3Bucket
from fedcombiner.modelstorage.s3.draft import read_record
from fedcombiner.modelstorage.s3.errors import translated
from fedcombiner.modelstorage.s3.layout import Record
from fedcombiner.modelstorage.store import ObjectDamaged, ObjectKey, ObjectNotFound, StoreUnavailable
from fedcombiner.wire.chunks import CHUNK_SIZE


class Source:
    """A complete object being read; nothing is asked for before the first `read`.

    When the connection breaks, the next `read` goes on where the last one ended.
    """

    def __init__(self, bucket: S3Bucket, key: ObjectKey, offset: int) -> None:
        self._bucket = bucket
        self._key = key
        self._position = offset
        self._record: Record | None = None
        self._response: BaseHTTPResponse | None = None

    def read(self) -> Sequence[bytes]:
        """The next few chunks, none at the end.

        Raises:
            ObjectNotFound: the object does not exist.
            ObjectDamaged: the data has another size than the record says.
            StoreUnavailable: the data cannot be read.
        """
        record = self.record()
        chunks: list[bytes] = []
        while len(chunks) < BATCH_CHUNKS and self._position < record.info.size:
            chunks.append(self._bucket.tried(lambda _: self._chunk(record)))
            self._position += len(chunks[-1])
        return chunks

    @property
    def exhausted(self) -> bool:
        return self._record is not None and self._position >= self._record.info.size

    def record(self) -> Record:
        """The object's record, as it was at the first call. Raises ObjectNotFound."""
        if self._record is None:
            self._record = read_record(self._bucket, self._key)
        if self._record is None:
            raise ObjectNotFound(self._key)
        return self._record

    def close(self) -> None:
        response, self._response = self._response, None
        if response:
            response.close()

    def _chunk(self, record: Record) -> bytes:
        response = self._response or self._open(record)
        wanted = min(CHUNK_SIZE, record.info.size - self._position)
        try:
            with translated(self._bucket.name):
                chunk = response.read(wanted)
            if len(chunk) != wanted:
                raise StoreUnavailable(f"{self._key} was cut off at byte {self._position + len(chunk)}")
        except StoreUnavailable:
            self.close()
            raise
        if self._position + wanted == record.info.size:
            self._response = None
            response.release_conn()
        return chunk

    def _open(self, record: Record) -> BaseHTTPResponse:
        response = self._bucket.open(record.data, self._position)
        if response is None:
            raise ObjectNotFound(self._key)
        self._response = response
        expected = str(record.info.size - self._position)
        if response.headers.get("Content-Length") != expected:
            self.close()
            raise ObjectDamaged(f"the data of {self._key} has another size than its record says")
        return response


class LocalCopy:
    """What a source gives, in a local file, checked against the sha256 of its record."""

    def __init__(self, source: Source, path: Path) -> None:
        self._source = source
        self._hash = hashlib.sha256()
        self._path = path
        self._descriptor = -1

    def open(self) -> None:
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def append(self, chunks: Sequence[bytes]) -> None:
        for chunk in chunks:
            self._hash.update(chunk)
            write_all(self._descriptor, memoryview(chunk))

    def check(self) -> None:
        """Raises ObjectDamaged if what was read to its end is not what was written."""
        info = self._source.record().info
        if self._hash.hexdigest() != info.sha256:
            raise ObjectDamaged(f"{info.key} is damaged: its sha256 is not the one of its record")

    def remove(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._path.unlink(missing_ok=True)
