"""A large object in parts: S3 shows it to nobody before it is complete, and whole from then on."""

import threading
from typing import Final, cast

from minio import Minio
from minio.commonconfig import CopySource
from minio.datatypes import Part

from fedcombiner.modelstorage.s3.bucket import S3Bucket, passing
from fedcombiner.modelstorage.store import Buffer, StoreUnavailable

MAX_PARTS: Final = 10_000
_MIN_PART_BYTES: Final = 8 << 20
_PART_STEP: Final = 1 << 20
_MAX_OBJECT_BYTES: Final = 5 << 40
_COPIED_PART_BYTES: Final = 256 << 20
_DROPPED: Final = "NoSuchUpload"


def part_size(max_bytes: int) -> int:
    """Bytes of each part but the last: 8 MiB, or more where 10,000 of those would not hold `max_bytes`."""
    least = -(-min(max_bytes, _MAX_OBJECT_BYTES) // MAX_PARTS)
    return max(_MIN_PART_BYTES, -(-least // _PART_STEP) * _PART_STEP)


class MultipartUpload:
    """Blocking. Parts may be put by several threads at once, each number by one."""

    def __init__(self, bucket: S3Bucket, name: str) -> None:
        self._bucket = bucket
        self._name = name
        self._etags: dict[int, str] = {}
        self._id = ""
        self._beginning = threading.Lock()

    def put(self, number: int, data: Buffer) -> None:
        """Put part `number`, counted from 1. All but the last have the same size."""
        self._begin()
        body = cast(bytes, data)  # annotated for bytes, but any buffer will do
        self._etags[number] = self._bucket.tried(
            lambda client: client._upload_part(self._bucket.name, self._name, body, None, self._id, number)
        )

    def copy(self, source: str, size: int) -> None:
        """Put all parts by copying another object in the bucket, within the server."""
        self._begin()
        headers = CopySource(self._bucket.name, source).gen_copy_headers()
        for number, start in enumerate(range(0, size, _COPIED_PART_BYTES), 1):
            end = min(start + _COPIED_PART_BYTES, size) - 1
            self._copy_part(number, {**headers, "x-amz-copy-source-range": f"bytes={start}-{end}"})

    def complete(self) -> None:
        """Make the object of all parts that were put."""
        parts = [Part(number, etag) for number, etag in sorted(self._etags.items())]

        def complete(client: Minio) -> bool:
            with passing(_DROPPED) as dropped:
                client._complete_multipart_upload(self._bucket.name, self._name, self._id, parts)
            return not dropped

        # An upload that is not known any more was completed by a request whose answer got lost, or dropped.
        if not self._bucket.tried(complete) and not self._bucket.exists(self._name):
            raise StoreUnavailable("the object store has dropped an upload that was under way")
        self._id = ""

    def abort(self) -> None:
        """Remove the parts, if there are any and they are not complete. None may be under way."""
        if not self._id:
            return

        def abort(client: Minio) -> None:
            with passing(_DROPPED):
                client._abort_multipart_upload(self._bucket.name, self._name, self._id)

        self._bucket.tried(abort)
        self._id = ""

    def _begin(self) -> None:
        with self._beginning:
            if not self._id:
                self._id = self._bucket.tried(
                    lambda client: client._create_multipart_upload(self._bucket.name, self._name, {})
                )

    def _copy_part(self, number: int, headers: dict[str, str]) -> None:
        def copy(client: Minio) -> str:
            # The client adds to the headers that it is given.
            etag, _ = client._upload_part_copy(self._bucket.name, self._name, self._id, number, dict(headers))
            return etag

        self._etags[number] = self._bucket.tried(copy)
