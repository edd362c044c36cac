"""Where an object is in a bucket.

    uploads/records/<id>            the record of a complete object: size, sha256, time, and where its data is
    uploads/data/<id>/<token>       its data, as it was written
    models/records/<id>             the same for models
    models/data/<id>/<token>
    packages/...                    the same for compute packages
    probe/<access key>              written and read to see whether the store works

Data is written first, under a name that no other writer uses, and is complete before its record is put: with
`If-None-Match: *`, so that the first record of an id stays. The record is what makes an object: it appears
and goes at once, it is so small that no reader holds it up, and size and sha256 are known when it is written,
which the metadata of a multipart upload, given at its start, could not say.
"""

import json
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Self

from fedcombiner.modelstorage.store import Kind, ObjectDamaged, ObjectInfo, ObjectKey

_VERSION: Final = 1


def records_prefix(kind: Kind) -> str:
    return f"{kind}/records/"


def data_prefix(kind: Kind) -> str:
    return f"{kind}/data/"


def record_name(key: ObjectKey) -> str:
    return records_prefix(key.kind) + key.id


def record_key(kind: Kind, name: str) -> ObjectKey:
    """The key whose record has this name."""
    return ObjectKey(kind, name.removeprefix(records_prefix(kind)))


def probe_name(access_key: str) -> str:
    """The probe of one user; each may write its own only."""
    return f"probe/{access_key}"


def new_data_name(key: ObjectKey) -> str:
    """A name for data of `key` that was never used before."""
    return f"{data_prefix(key.kind)}{key.id}/{uuid.uuid4().hex}"


def owner_of_data(kind: Kind, name: str) -> ObjectKey:
    """The key that a data name was made for.

    Raises:
        InvalidArgument: it is not a name that `new_data_name` makes.
    """
    return ObjectKey(kind, name.removeprefix(data_prefix(kind)).rpartition("/")[0])


@dataclass(frozen=True, slots=True)
class Record:
    """A complete object and the name of its data in the bucket."""

    info: ObjectInfo
    data: str

    def encode(self) -> bytes:
        info = self.info
        fields = {
            "version": _VERSION,
            "size": info.size,
            "sha256": info.sha256,
            "modified": info.modified.isoformat(),
            "data": self.data,
        }
        return json.dumps(fields).encode()

    @classmethod
    def decode(cls, key: ObjectKey, text: bytes) -> Self:
        """Raises ObjectDamaged: it is not a record."""
        try:
            fields = json.loads(text)
            modified = datetime.fromisoformat(fields["modified"])
            return cls(
                ObjectInfo(key, int(fields["size"]), str(fields["sha256"]), modified), str(fields["data"])
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ObjectDamaged(f"the record of {key} is damaged") from error
