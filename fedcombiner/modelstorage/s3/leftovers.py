"""Finding data that no record names: what writers and deletions that were killed have left. Blocking."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from fedcombiner.modelstorage.s3.bucket import PAGE, Listed, S3Bucket
from fedcombiner.modelstorage.s3.draft import read_record
from fedcombiner.modelstorage.s3.layout import data_prefix, owner_of_data
from fedcombiner.modelstorage.store import KINDS, Kind

SHORTEST: Final = timedelta(hours=1)


def orphans(bucket: S3Bucket, older_than: timedelta, kinds: Sequence[Kind] = KINDS) -> Iterator[Listed]:
    """Data without a record, of these kinds.

    Data is older than its record, so `older_than` must be longer than any writer is at work on one object; S3
    counts from when it began.

    Raises:
        ValueError: `older_than` is less than an hour.
        StoreFull, StoreUnavailable: while iterating.
    """
    if older_than < SHORTEST:
        raise ValueError(f"data younger than {SHORTEST} may still be in the making")
    before = datetime.now(UTC) - older_than
    for kind in kinds:
        for entry in _data(bucket, kind):
            if entry.modified < before and _is_orphan(bucket, kind, entry.name):
                yield entry


def _data(bucket: S3Bucket, kind: Kind) -> Iterator[Listed]:
    after = ""
    while page := bucket.page(data_prefix(kind), after):
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1].name


def _is_orphan(bucket: S3Bucket, kind: Kind, name: str) -> bool:
    record = read_record(bucket, owner_of_data(kind, name))
    return record is None or record.data != name
