"""The operator's side of compute packages: putting them at a discovery, and choosing what clients get."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import tempfile
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import grpc
import httpx

from fedcombiner.client.errors import ServerUnreachable, TransferBroken
from fedcombiner.client.trust import Trust
from fedcombiner.servicekit.binding import is_loopback
from fedcombiner.servicekit.errors import (
    FailedPrecondition,
    InvalidArgument,
    ServiceError,
    from_status,
    printable,
)
from fedcombiner.servicekit.replies import host_in, json_object
from fedcombiner.wire.chunks import CHUNK_SIZE

_TIMEOUT: Final = httpx.Timeout(10.0, read=60.0, write=60.0)  # seconds
_MESSAGE_CHARS: Final = 500
_PACKAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CODES: Final[Mapping[int, grpc.StatusCode]] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    503: grpc.StatusCode.UNAVAILABLE,
    507: grpc.StatusCode.UNAVAILABLE,
}

Row = dict[str, Any]


class PackagesClient:
    """Calls to the discovery at the http or https `url`. Leave it as a context manager.

    Everything raises `ServerUnreachable` when nobody answers, and the other classes of
    `fedcombiner.servicekit.errors` for what the discovery refuses. A package is a dict with the keys of
    docs/discovery.md: id, name, file_name, size, created, active.

    Args:
        trust: whom to believe at an https url; None: public authorities.
        token: sent with every request, a controller's or an operator's.

    Raises:
        InvalidArgument: `url` is none.
    """

    def __init__(self, url: str, *, trust: Trust | None = None, token: str = "") -> None:
        host = host_in(url)
        if not host:
            raise InvalidArgument("discovery", url, "an http or https URL such as http://localhost:8092")
        self._url = url
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=_TIMEOUT,
            trust_env=not is_loopback(host),
            verify=True if trust is None else trust.context(),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def put(self, archive: Path, name: str) -> Row:
        """Upload an archive. It is not given to clients before it is activated. Raises OSError."""
        headers = {"Content-Length": str(archive.stat().st_size)}
        return await self._ask(
            "POST", "/packages", params={"name": name}, headers=headers, content=_chunks(archive)
        )

    async def list(self) -> list[Row]:
        """All packages, the oldest first."""
        found = (await self._ask("GET", "/packages")).get("packages")
        return found if isinstance(found, list) else []

    async def get(self, package: str, target: Path) -> Row:
        """Download the newest package of this name, or the one with this id, into a file that appears whole.

        Raises:
            NotFound: there is none.
            TransferBroken: what came is not what was put.
            OSError: the file cannot be written.
        """
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                package_id = await self._download(f"/packages/{_segment(package)}", file)
            os.replace(name, target)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name)
        return next(row for row in await self.list() if row["id"] == package_id)

    async def activate(self, package: str) -> Row:
        """Have clients given this package from now on: the newest of this name, or the one with this id."""
        return await self._ask("POST", f"/packages/{_segment(package)}/activate")

    async def _download(self, path: str, file: BinaryIO) -> str:
        """The id of what was downloaded."""
        digest = hashlib.sha256()
        with self._reaching():
            async with self._http.stream("GET", path) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise _refusal(response)
                async for chunk in response.aiter_raw(CHUNK_SIZE):
                    digest.update(chunk)
                    await asyncio.to_thread(file.write, chunk)
        package_id = str(response.headers.get("etag", "")).strip('"')
        if digest.hexdigest() != package_id:
            raise TransferBroken(f"what came of package {package_id} is not what was put")
        return package_id

    async def _ask(self, method: str, path: str, **request: Any) -> Row:
        with self._reaching():
            response = await self._http.request(method, path, **request)
        if response.status_code not in (200, 201):
            raise _refusal(response)
        found = json_object(response.content)
        if not found:
            raise FailedPrecondition(f"{self._url} answers, but is no discovery of this stack")
        return found

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise ServerUnreachable(self._url, str(error) or type(error).__name__) from error


async def _chunks(archive: Path) -> AsyncGenerator[bytes, None]:
    with archive.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_SIZE):
            yield chunk


def _segment(package: str) -> str:
    """A name or id as one part of a path. Raises InvalidArgument."""
    if not _PACKAGE.fullmatch(package):
        raise InvalidArgument("package", package, "a name, or six or more characters of an id")
    return package


def _refusal(response: httpx.Response) -> ServiceError:
    code = _CODES.get(response.status_code, grpc.StatusCode.UNKNOWN)
    message = (
        json_object(response.content).get("message")
        or f"HTTP {response.status_code} {response.reason_phrase}"
    )
    return from_status(code, printable(str(message), _MESSAGE_CHARS))
