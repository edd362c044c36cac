"""What an S3 server and the way there can answer, as errors of the store."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError, NewConnectionError

from fedcombiner.modelstorage.store import StoreFull, StoreUnavailable
from fedcombiner.servicekit.errors import printable

SETUP: Final = "run `combiner storage setup`"

_FULL: Final = {
    "XMinioStorageFull": "the object store has no space left",
    "XMinioAdminBucketQuotaExceeded": "the quota of bucket '{bucket}' is used up",
    "QuotaExceeded": "the quota of bucket '{bucket}' is used up",
    "InsufficientStorage": "the object store has no space left",
}
_REFUSED: Final = {
    "InvalidAccessKeyId": "the object store does not know MINIO_ACCESS_KEY: correct it, or {setup}",
    "SignatureDoesNotMatch": "MINIO_SECRET_KEY is not the secret of MINIO_ACCESS_KEY: correct it, or {setup}",
    "ExpiredToken": "MINIO_ACCESS_KEY has expired",
    "AccessDenied": "MINIO_ACCESS_KEY has no right to do this in bucket '{bucket}': {setup}",
    "AllAccessDisabled": "bucket '{bucket}' is disabled",
    "NoSuchBucket": "bucket '{bucket}' does not exist: {setup}",
    "InvalidBucketName": "'{bucket}' cannot be the name of a bucket: correct MINIO_BUCKET",
    "AuthorizationHeaderMalformed": "bucket '{bucket}' is in another region: correct MINIO_REGION",
    "PermanentRedirect": "bucket '{bucket}' is elsewhere: correct MINIO_URL and MINIO_REGION",
    "RequestTimeTooSkewed": "the clocks of this machine and of the object store are too far apart",
}
_PASSING: Final = ("SlowDown", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict")
_PASSING_STATUS: Final = (408, 429)


class StoreRefused(StoreUnavailable):
    """The object store answers and says no; an operator must mend it, trying again does not help."""


@contextmanager
def translated(bucket: str) -> Iterator[None]:
    """Raise what the S3 client raises as errors of the store.

    Raises:
        StoreFull: space or quota is used up.
        StoreRefused: the server said no for good.
        StoreUnavailable: the server is away, or said that it is busy.
    """
    try:
        yield
    except S3Error as error:
        raise _from_s3(error, bucket) from error
    except NewConnectionError as error:
        raise StoreUnavailable("the object store cannot be reached (MINIO_URL)") from error
    except (HTTPError, MinioException, OSError) as error:
        raise _from_transport(error) from error


def _from_s3(error: S3Error, bucket: str) -> StoreUnavailable | StoreFull:
    code, status = error.code or "", error.response.status
    if code in _FULL:
        return StoreFull(_FULL[code].format(bucket=bucket))
    if code in _REFUSED:
        return StoreRefused(f"{_REFUSED[code].format(bucket=bucket, setup=SETUP)} ({code})")
    said = f"{printable(code)}: {printable(error.message or '')}"
    return _of_status(status, code in _PASSING, f"the object store answers {said}")


def _from_transport(error: Exception) -> StoreUnavailable:
    if isinstance(error, ServerError):
        return _of_status(error.status_code, False, f"the object store answers HTTP {error.status_code}")
    if isinstance(error, InvalidResponseError):
        # Something else than S3 answers: a proxy in front of it, or MINIO_URL is wrong.
        return StoreUnavailable("what answers at MINIO_URL is not an S3 server, or not ready yet")
    return StoreUnavailable(f"the object store does not answer: {type(error).__name__}")


def _of_status(status: int, passing: bool, message: str) -> StoreUnavailable:
    kind = StoreUnavailable if passing or status >= 500 or status in _PASSING_STATUS else StoreRefused
    return kind(message)
