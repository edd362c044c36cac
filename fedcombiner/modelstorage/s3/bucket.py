"""The requests to one bucket: blocking, tried again while the server is away, with the errors of the store.

S3 through the `minio` package. Its public methods send no conditional requests and no parts one by one, so
some of its internal ones are called here and in `s3.multipart`; pyproject.toml bounds the version for that.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Final, TypeVar, cast
from urllib.parse import urlsplit

from minio import Minio
from minio.datatypes import Object
from minio.error import S3Error
from minio.helpers import DictType
from urllib3 import BaseHTTPResponse

from fedcombiner.modelstorage.s3.errors import StoreRefused, translated
from fedcombiner.modelstorage.s3.http import pool_manager
from fedcombiner.modelstorage.store import Buffer, StoreUnavailable
from fedcombiner.servicekit.backoff import Backoff

T = TypeVar("T")

_BACKOFF: Final = Backoff(0.1, 2.0)
PAGE: Final = 1000
_MISSING: Final = "NoSuchKey"
_NOT_NEW: Final = "PreconditionFailed"
_NOT_IMPLEMENTED: Final = "NotImplemented"


@dataclass(frozen=True, slots=True)
class S3Location:
    """A bucket and who works in it. `url`: scheme, host and port; `ca_file`: PEM, empty for the system's."""

    url: str
    bucket: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "us-east-1"
    ca_file: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """An object in a listing: size in bytes, time of its writing in UTC."""

    name: str
    size: int
    modified: datetime


def connect(location: S3Location) -> Minio:
    """A client for the server of `location`. Nothing is sent yet.

    Raises:
        OSError: the `ca_file` cannot be read.
        ValueError: the URL cannot be one of an S3 server.
    """
    parts = urlsplit(location.url)
    return Minio(
        parts.netloc,
        location.access_key,
        location.secret_key,
        secure=parts.scheme == "https",
        region=location.region,
        http_client=pool_manager(location.ca_file),
    )


class S3Bucket:
    """Every method may raise `StoreFull`, `StoreUnavailable` and, without trying again, `StoreRefused`.

    Requests are repeated with back-off for up to `patience` seconds, so each may be done more than once.
    """

    def __init__(self, location: S3Location, *, patience: float) -> None:
        self._client = connect(location)
        self._patience = patience
        self._closed = threading.Event()
        self.name: Final = location.bucket
        self.conditional = True

    def close(self) -> None:
        """No request is repeated from now on."""
        self._closed.set()

    def tried(self, call: Callable[[Minio], T], *, patience: float | None = None) -> T:
        """The result of `call`, repeated while the server is away for no longer than the patience."""
        deadline = time.monotonic() + (self._patience if patience is None else patience)
        for delay in _BACKOFF.delays():
            try:
                with translated(self.name):
                    return call(self._client)
            except StoreRefused:
                raise
            except StoreUnavailable:
                # A kept connection leads to what was at the address when it was opened; it may be no store.
                self._client._http.clear()
                if time.monotonic() + delay > deadline or self._closed.wait(delay):
                    raise
        raise AssertionError("the delays never end")

    def put(self, name: str, data: Buffer, *, patience: float | None = None) -> None:
        self.tried(lambda client: self._put(client, name, data), patience=patience)

    def probe(self, name: str) -> None:
        """Write and read a small object, without repetition."""
        self.put(name, b"", patience=0)
        if self.get(name, patience=0) is None:
            raise StoreUnavailable("the object store does not give back what it has just taken")

    def put_new(self, name: str, data: bytes) -> bool:
        """Put `data` unless there is an object of that name: then False.

        Atomic if the server is `conditional`. As the request may be repeated, the one that is there may be
        this one.
        """
        if not self.conditional:
            if self.exists(name):
                return False
            self.put(name, data)
            return True

        def put(client: Minio) -> bool:
            with passing(_NOT_NEW) as passed:
                self._put(client, name, data, {"If-None-Match": "*"})
            return not passed

        return self.tried(put)

    def check_conditions(self, name: str) -> None:
        """Find out whether the server is `conditional`, with the object `name`, which must exist."""

        def put(client: Minio) -> bool:
            with passing(_NOT_NEW, _NOT_IMPLEMENTED) as passed:
                self._put(client, name, b"", {"If-None-Match": "*"})
            return passed == [_NOT_NEW]

        self.conditional = self.tried(put)

    def get(self, name: str, *, patience: float | None = None) -> bytes | None:
        """The whole of a small object, None if it does not exist."""

        def read(client: Minio) -> bytes | None:
            response = self._open(client, name, 0)
            if response is None:
                return None
            with closing(response):
                data = response.read()
                response.release_conn()
            return data

        return self.tried(read, patience=patience)

    def exists(self, name: str) -> bool:
        def look(client: Minio) -> bool:
            with passing(_MISSING) as missing:
                client.stat_object(self.name, name)
            return not missing

        return self.tried(look)

    def open(self, name: str, offset: int) -> BaseHTTPResponse | None:
        """The bytes from `offset` on, which must be before the end; None if there is no such object.

        To be closed. Asked for once; neither this nor reading it is `translated`.
        """
        return self._open(self._client, name, offset)

    def remove(self, name: str, *, patience: float | None = None) -> None:
        """Does nothing if there is no such object. May wait for those who read it."""
        self.tried(lambda client: client.remove_object(self.name, name), patience=patience)

    def page(self, prefix: str, after: str = "") -> Sequence[Listed]:
        """Up to 1000 objects whose names begin with `prefix`, in order, from behind `after` on."""

        def read(client: Minio) -> Sequence[Listed]:
            found = client.list_objects(self.name, prefix=prefix, recursive=True, start_after=after or None)
            return [_listed(entry) for entry in islice(found, PAGE)]

        return self.tried(read)

    def _open(self, client: Minio, name: str, offset: int) -> BaseHTTPResponse | None:
        with passing(_MISSING):
            return client.get_object(self.name, name, offset=offset)
        return None

    def _put(self, client: Minio, name: str, data: Buffer, headers: DictType | None = None) -> None:
        # Annotated for bytes, but any buffer will do.
        client._put_object(self.name, name, cast(bytes, data), headers)


@contextmanager
def passing(*codes: str) -> Iterator[list[str]]:
    """Take the answers with these S3 codes for no error; the list then holds the code."""
    passed: list[str] = []
    try:
        yield passed
    except S3Error as error:
        if error.code not in codes:
            raise
        passed.append(error.code)


def _listed(entry: Object) -> Listed:
    assert entry.object_name is not None
    assert entry.last_modified is not None
    return Listed(entry.object_name, entry.size or 0, entry.last_modified)
