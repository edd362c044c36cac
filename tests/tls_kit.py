"""Certificates for tests: an authority, and servers' pairs that clients must take or refuse.

The fixture `certificates` (tests/conftest.py) makes them once a run. Servers of the tests are at 127.0.0.1
and at localhost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from fedcombiner.certs.authority import Authority
from fedcombiner.servicekit.certificates import KeyPair
from fedcombiner.servicekit.health import Health
from fedcombiner.servicekit.http import HttpServer
from fedcombiner.servicekit.metrics import Metrics
from fedcombiner.servicekit.rpc import bind, build_server
from fedcombiner.servicekit.tls import IdentityInFiles

HOSTS: Final = ("localhost", "127.0.0.1")
_MONTH: Final = timedelta(days=30)


@dataclass(frozen=True)
class PairFiles:
    """A server's pair in two PEM files: `certificate` for TLS_CERT_FILE, `key` for TLS_KEY_FILE."""

    certificate: Path
    key: Path

    @property
    def settings(self) -> dict[str, Path]:
        """For the settings of a service."""
        return {"tls_cert_file": self.certificate, "tls_key_file": self.key}

    def pair(self) -> KeyPair:
        return KeyPair.parse(self.certificate.read_bytes(), self.key.read_bytes())

    def write(self, source: PairFiles) -> None:
        """Become a copy of another pair, as a renewal would."""
        self.certificate.write_bytes(source.certificate.read_bytes())
        self.key.write_bytes(source.key.read_bytes())


class Certificates:
    """`good` is for HOSTS and valid; each of the others has one thing wrong with it.

    Clients trust `ca` (a PEM file). `other_ca` has signed nothing but `unknown`.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.now = datetime.now(UTC)
        self._authority = Authority.create("tests", now=self.now - 2 * _MONTH, lifetime=3 * _MONTH)
        stranger = Authority.create("strangers", now=self.now, lifetime=_MONTH)
        self.ca = self._write("ca.pem", self._authority.certificate)
        self.other_ca = self._write("other-ca.pem", stranger.certificate)
        self.good = self.issue("good")
        self.expired = self.issue("expired", now=self.now - 2 * _MONTH)
        self.wrong_name = self.issue("wrong-name", hosts=["elsewhere.example.org"])
        self.unknown = self.issue("unknown", authority=stranger)

    @property
    def ca_pem(self) -> bytes:
        return self.ca.read_bytes()

    def issue(
        self,
        name: str,
        *,
        hosts: Sequence[str] = HOSTS,
        now: datetime | None = None,
        lifetime: timedelta = _MONTH,
        authority: Authority | None = None,
    ) -> PairFiles:
        """A new pair in files of this name."""
        issued = (authority or self._authority).issue(hosts, now=now or self.now, lifetime=lifetime)
        return PairFiles(
            self._write(f"{name}.pem", issued.certificate), self._write(f"{name}-key.pem", issued.key)
        )

    def _write(self, name: str, data: bytes) -> Path:
        path = self._directory / name
        path.write_bytes(data)
        return path


@asynccontextmanager
async def grpc_server(files: PairFiles | None) -> AsyncIterator[str]:
    """A server with the health service; gives its address."""
    metrics = Metrics()
    server = build_server(metrics.rpc)
    health = Health(metrics)
    health.add_to(server)
    identity = files and IdentityInFiles(files.certificate, files.key)
    port = bind(server, "127.0.0.1", 0, identity=identity)
    await health.start()
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
        await health.stop()


@asynccontextmanager
async def https_server(identity: IdentityInFiles) -> AsyncIterator[int]:
    """A server that says hello; gives its port."""

    async def hello(_request: object) -> PlainTextResponse:
        return PlainTextResponse("hello")

    app = Starlette(routes=[Route("/", hello)])
    server = HttpServer(app, "127.0.0.1", 0, identity=identity)
    await server.start()
    try:
        yield server.port
    finally:
        await server.stop()
