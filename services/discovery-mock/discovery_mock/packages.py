"""Compute packages over HTTP: what clients fetch, and what operators put."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from discovery_mock.catalog import Package, PackageCatalog
from discovery_mock.combiners import NETWORK_ID
from discovery_mock.downloads import Download, steady
from discovery_mock.messages import not_yet, parse_query_name, parse_wants_checksum
from discovery_mock.web import TRY_LATER, Answer, parts_of
from fedcombiner.modelstorage.scratch import ScratchArea
from fedcombiner.modelstorage.store import STORE_AWAY
from fedcombiner.packages.archive import PackageLimits, check_archive
from fedcombiner.packages.names import BadPackage
from fedcombiner.servicekit.errors import InvalidArgument

log = structlog.get_logger(__name__)

MAX_UPLOADS: Final = 2

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME_ALLOWED: Final = "1 to 64 letters, digits, '.', '_' and '-', the first one a letter or a digit"
_DEFAULT_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443}


class PackageDesk:
    """Two uploads are taken at once, others wait. Archives on their way are in the scratch area.

    A peer that makes no progress for `idle` seconds is cut off. A download waits `patience` seconds for a
    store that is away: clients themselves would wait for a minute before they try again.
    """

    def __init__(
        self,
        catalog: PackageCatalog,
        scratch: ScratchArea,
        limits: PackageLimits,
        *,
        idle: float,
        patience: float,
    ) -> None:
        self._catalog = catalog
        self._scratch = scratch
        self._limits = limits
        self._idle = idle
        self._patience = patience
        self._uploads = asyncio.Semaphore(MAX_UPLOADS)

    async def download(self, request: Request) -> Answer | Response:
        """`GET /context`, `/download_package` and `/api/v1/packages/download`."""
        try:
            package = await self._wanted(request)
            return await self._send(package) if package else _NOT_YET
        except STORE_AWAY as error:
            return _later(f"The compute package cannot be read now: {error.message}.")

    async def checksum(self, request: Request) -> Answer:
        """`GET /checksum`, `/get_package_checksum` and `/api/v1/packages/checksum`."""
        try:
            package = await self._wanted(request)
        except STORE_AWAY as error:
            return _later(f"The compute package cannot be looked up now: {error.message}.")
        return (200, {"success": True, "checksum": package.id, "message": ""}) if package else _NOT_YET

    async def client_config(self, request: Request) -> Answer:
        """`GET /get_client_config`: what a client's YAML file holds."""
        wants_checksum = parse_wants_checksum(request.query_params)
        package = await self._catalog.active() if wants_checksum else None
        url = request.url  # of a Host header that makes no sense Starlette makes our own address
        return 200, {
            "network_id": NETWORK_ID,
            "discover_host": url.hostname,
            "discover_port": url.port or _DEFAULT_PORTS[url.scheme],
            **({"checksum": package.id} if package else {}),
        }

    async def list(self, _request: Request) -> Answer:
        """`GET /packages`."""
        active = await self._catalog.active()
        packages = await self._catalog.all()
        return 200, {"packages": [_row(package, package == active) for package in packages]}

    async def put(self, request: Request) -> Answer:
        """`POST /packages?name=NAME`, the archive as the body. It is not active before it is activated."""
        name = request.query_params.get("name", "")
        if not _NAME.fullmatch(name):
            raise InvalidArgument("name", name, _NAME_ALLOWED)
        async with self._uploads, self._scratch_file() as path:
            await self._receive(request, path)
            try:
                await asyncio.to_thread(check_archive, path, self._limits)
            except BadPackage as error:
                raise HTTPException(400, str(error)) from None
            package = await self._catalog.put(path, name)
        log.info("package put", package=package.name, id=package.id, size=package.size)
        return 201, _row(package, package == await self._catalog.active())

    async def get(self, request: Request) -> Response:
        """`GET /packages/{package}`, by name or by the first digits of its id."""
        return await self._send(await self._catalog.find(request.path_params["package"]))

    async def activate(self, request: Request) -> Answer:
        """`POST /packages/{package}/activate`: clients are given this one from now on."""
        package = await self._catalog.find(request.path_params["package"])
        await self._catalog.activate(package)
        log.info("package activated", package=package.name, id=package.id)
        return 200, _row(package, True)

    async def _wanted(self, request: Request) -> Package | None:
        """The one that a client asks for; None: none is set. Raises NotFound if it names one."""
        name = parse_query_name(request.query_params)
        return await self._catalog.find(name) if name else await self._catalog.active()

    async def _send(self, package: Package) -> Response:
        chunks = steady(self._catalog, package, self._patience)
        return await Download.begin(chunks, package, idle=self._idle)

    async def _receive(self, request: Request, path: Path) -> None:
        most = self._limits.archive_bytes
        too_large = HTTPException(413, f"the archive is larger than {most} bytes")
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > most:
            raise too_large
        size = 0
        with path.open("xb") as file:
            async with aclosing(_lively(parts_of(request), self._idle)) as parts:
                async for part in parts:
                    size += len(part)
                    if size > most:
                        raise too_large
                    await asyncio.to_thread(file.write, part)

    @asynccontextmanager
    async def _scratch_file(self) -> AsyncIterator[Path]:
        path = self._scratch.path()
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


async def _lively(parts: AsyncGenerator[bytes, None], idle: float) -> AsyncGenerator[bytes, None]:
    """The parts as long as they keep coming. Raises HTTPException."""
    async with aclosing(parts):
        while True:
            try:
                async with asyncio.timeout(idle):
                    part = await anext(parts, None)
            except TimeoutError:
                raise HTTPException(408, f"nothing came for {idle:g} s") from None
            if part is None:
                return
            yield part


def _later(message: str) -> Answer:
    """A success without an attachment: clients up to 0.20 wait for a minute after it, and take refusals for
    a package that is broken.
    """
    return TRY_LATER, not_yet(message, "remote")


_NOT_YET: Final = _later("No compute package is set yet: `combiner package put` sets one.")


def _row(package: Package, active: bool) -> dict[str, object]:
    return {
        "id": package.id,
        "name": package.name,
        "file_name": package.file_name,
        "size": package.size,
        "created": package.created.isoformat(),
        "active": active,
    }
