"""What S3 servers answer, as errors of the store; and the sizes of parts."""

import pytest
from minio.error import InvalidResponseError, S3Error, ServerError
from urllib3 import HTTPResponse
from urllib3.exceptions import ProtocolError

from fedcombiner.modelstorage.s3.errors import StoreRefused, translated
from fedcombiner.modelstorage.s3.multipart import MAX_PARTS, part_size
from fedcombiner.modelstorage.store import StoreFull, StoreUnavailable

MIB = 1 << 20


def s3_error(status: int, code: str) -> S3Error:
    return S3Error(HTTPResponse(status=status), code, "says the server", "/b/k", "id", "host")


def raised_for(error: Exception) -> Exception:
    with pytest.raises((StoreFull, StoreUnavailable)) as caught, translated("b1"):
        raise error
    assert caught.value.__cause__ is error
    return caught.value


@pytest.mark.parametrize(
    ("status", "code", "kind", "expected"),
    [
        (507, "XMinioStorageFull", StoreFull, "no space left"),
        (400, "XMinioAdminBucketQuotaExceeded", StoreFull, "quota of bucket 'b1'"),
        (
            403,
            "InvalidAccessKeyId",
            StoreRefused,
            "MINIO_ACCESS_KEY: correct it, or run `combiner storage setup`",
        ),
        (403, "SignatureDoesNotMatch", StoreRefused, "MINIO_SECRET_KEY is not"),
        (403, "AccessDenied", StoreRefused, "no right to do this in bucket 'b1'"),
        (404, "NoSuchBucket", StoreRefused, "'b1' does not exist: run `combiner storage setup`"),
        (400, "AuthorizationHeaderMalformed", StoreRefused, "MINIO_REGION"),
        (400, "SomethingElse", StoreRefused, "SomethingElse: says the server"),
        (503, "SlowDown", StoreUnavailable, "SlowDown"),
        (500, "InternalError", StoreUnavailable, "InternalError"),
        (503, "XMinioServerNotInitialized", StoreUnavailable, "XMinioServerNotInitialized"),
        (400, "RequestTimeout", StoreUnavailable, "RequestTimeout"),
        (409, "OperationAborted", StoreUnavailable, "OperationAborted"),
        (429, "TooManyRequests", StoreUnavailable, "TooManyRequests"),
    ],
)
def test_an_answer_of_the_server(status: int, code: str, kind: type[Exception], expected: str) -> None:
    error = raised_for(s3_error(status, code))
    assert type(error) is kind
    assert expected in str(error)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ServerError("", 502), StoreUnavailable),
        (ServerError("", 405), StoreRefused),
        (InvalidResponseError(502, "text/html", "<html>"), StoreUnavailable),
        (ProtocolError("broken"), StoreUnavailable),
        (ConnectionResetError(), StoreUnavailable),
    ],
)
def test_no_answer_of_the_server(error: Exception, kind: type[Exception]) -> None:
    assert type(raised_for(error)) is kind


@pytest.mark.parametrize(
    ("max_bytes", "expected"),
    [
        (0, 8 * MIB),
        (2 << 30, 8 * MIB),
        (MAX_PARTS * 8 * MIB, 8 * MIB),
        (MAX_PARTS * 8 * MIB + 1, 9 * MIB),
        (5 << 40, 525 * MIB),
        (1 << 50, 525 * MIB),
    ],
)
def test_parts_are_as_small_as_their_number_allows(max_bytes: int, expected: int) -> None:
    assert part_size(max_bytes) == expected
