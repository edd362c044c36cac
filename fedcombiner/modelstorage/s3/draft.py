"""An object in the making in a bucket: blocking, for worker threads."""

from datetime import UTC, datetime

from fedcombiner.modelstorage.s3.bucket import S3Bucket
from fedcombiner.modelstorage.s3.errors import StoreRefused
from fedcombiner.modelstorage.s3.layout import Record, new_data_name, record_name
from fedcombiner.modelstorage.s3.multipart import MultipartUpload
from fedcombiner.modelstorage.store import Buffer, ObjectInfo, ObjectKey, StoreFull, StoreUnavailable


def read_record(bucket: S3Bucket, key: ObjectKey) -> Record | None:
    text = bucket.get(record_name(key))
    return None if text is None else Record.decode(key, text)


class Draft:
    """Data under a name of its own, in one piece or in parts, until a record makes it an object."""

    def __init__(self, bucket: S3Bucket, key: ObjectKey) -> None:
        self._bucket = bucket
        self._key = key
        self._name = new_data_name(key)
        self.upload = MultipartUpload(bucket, self._name)
        self._stored = False

    def put(self, data: Buffer) -> None:
        """All of the data, if it is small."""
        # Marked first: the server may store it and the answer get lost.
        self._stored = True
        try:
            self._bucket.put(self._name, data)
        except (StoreFull, StoreRefused):
            self._stored = False
            raise

    def complete(self) -> None:
        """All parts of the upload have been put."""
        self._stored = True
        self.upload.complete()

    def copy(self, source: Record) -> ObjectInfo:
        """Make it of the data of another object, within the server, and `publish` it."""
        size = source.info.size
        if size:
            self.upload.copy(source.data, size)
            self.complete()
        else:
            self.put(b"")
        return self.publish(size, source.info.sha256)

    def publish(self, size: int, sha256: str) -> ObjectInfo:
        """Put the record, or keep the one that is there; answer which it is."""
        record = Record(ObjectInfo(self._key, size, sha256, datetime.now(UTC)), self._name)
        # From here on a record may name the data, which then stays, until it is known that none does.
        self._stored = False
        try:
            is_new = self._bucket.put_new(record_name(self._key), record.encode())
        except (StoreFull, StoreRefused):
            self._stored = True
            raise
        if is_new and self._bucket.conditional:
            return record.info
        found = read_record(self._bucket, self._key)
        if found is None:
            raise StoreUnavailable(f"{self._key} was deleted while it was written")
        self._stored = found.data != self._name
        return found.info

    def discard(self) -> None:
        """Remove what no record names."""
        self.upload.abort()
        if self._stored:
            self._bucket.remove(self._name)
            self._stored = False
