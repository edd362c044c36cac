"""TLS of servers: from files, renewed without a restart; and whom a service trusts when it calls others.

A server asks for its certificate at each handshake. Files are looked at then (two stat calls), so a renewed
pair is shown to the next client that connects, and those that are connected notice nothing.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import grpc
import structlog

from fedcombiner.servicekit.certificates import BadKeyPair, KeyPair
from fedcombiner.servicekit.errors import StartupError, printable
from fedcombiner.servicekit.metrics import Metrics

log = structlog.get_logger(__name__)

WARN_DAYS: Final = 14
CERTIFICATE_SETTING: Final = "TLS_CERT_FILE"
KEY_SETTING: Final = "TLS_KEY_FILE"

_SETTINGS: Final = {"certificate": CERTIFICATE_SETTING, "key": KEY_SETTING}
_FileState = tuple[int, int, int]  # inode, size, time of change


class ServerIdentity:
    """What a server proves its names with. May be used from any thread: gRPC asks from its own."""

    def __init__(self, pair: KeyPair) -> None:
        self._pair = pair
        self._followers: list[Callable[[KeyPair], None]] = []
        _log_pair("TLS certificate loaded", pair)

    def pair(self) -> KeyPair:
        """The newest one, for the handshake of now."""
        return self._pair

    def replace(self, pair: KeyPair) -> None:
        """Show `pair` from the next handshake on."""
        if (pair.certificate, pair.key) != (self._pair.certificate, self._pair.key):
            self._pair = pair
            _log_pair("TLS certificate renewed", pair)
            for follow in self._followers:
                follow(pair)

    def follow(self, on_renewal: Callable[[KeyPair], None]) -> None:
        """Call `on_renewal` with each new pair before anybody is shown it, in whatever thread that is."""
        self._followers.append(on_renewal)


class IdentityInFiles(ServerIdentity):
    """A pair in two PEM files, read again when they have changed.

    A renewed pair that cannot be used (half written, not fitting) is logged, and the old one stays.

    Raises:
        StartupError: it cannot be used now; names the setting and the file.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self.certificate = certificate
        self.key = key
        self._lock = threading.Lock()
        self._seen = self._state()
        super().__init__(_read_pair(certificate, key))

    def pair(self) -> KeyPair:
        with self._lock:
            # Looked at before it is read: what changes in between is another state the next time.
            state = self._state()
            if state != self._seen:
                self._seen = state
                self._reload()
            return self._pair

    def _reload(self) -> None:
        try:
            self.replace(_read_pair(self.certificate, self.key))
        except StartupError as error:
            log.warning("the renewed TLS certificate cannot be used; the old one stays", reason=str(error))

    def _state(self) -> tuple[_FileState | None, _FileState | None]:
        return _file_state(self.certificate), _file_state(self.key)


def load_identity(
    tls_cert_file: Path | None, tls_key_file: Path | None, metrics: Metrics
) -> IdentityInFiles | None:
    """The identity that these settings name, under watch of the metrics; None: no TLS.

    Raises:
        StartupError: a file is not there, or the two cannot be used together.
    """
    if tls_cert_file is None or tls_key_file is None:
        return None
    identity = IdentityInFiles(tls_cert_file, tls_key_file)
    watch_expiry(identity, metrics)
    return identity


def watch_expiry(identity: ServerIdentity, metrics: Metrics) -> None:
    gauge = metrics.gauge("tls_certificate_days_left", "Days until the server's certificate expires.")
    gauge.set_function(lambda: identity.pair().days_left(datetime.now(UTC)))


def server_credentials(identity: ServerIdentity) -> grpc.ServerCredentials:
    """For a gRPC server's port."""
    shown = identity.pair()

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        pair = identity.pair()
        if pair is shown:
            return None  # as it was
        shown = pair
        return _configuration(pair)

    # The stubs do not know that the callback may return None.
    return grpc.dynamic_ssl_server_credentials(_configuration(shown), renewed)  # type: ignore[arg-type]


def server_context(identity: IdentityInFiles) -> ssl.SSLContext:
    """For an HTTP server's port."""
    shown, context = identity.pair(), _server_context(identity)

    def on_hello(connection: ssl.SSLObject, _name: str | None, _first: ssl.SSLContext) -> None:
        nonlocal shown, context
        pair = identity.pair()
        if pair is not shown:
            # Fails only while the files change once more; then the next handshake finds them complete.
            with suppress(OSError):
                context = _server_context(identity)
                shown = pair
        connection.context = context

    first = _server_context(identity)
    callback: Callable[..., Any] = on_hello
    first.sni_callback = callback
    return first


def trust_context(authorities: Path | None, setting: str) -> ssl.SSLContext:
    """For calls over https: the authorities in a PEM file, or the system's; names are checked.

    Raises:
        StartupError: the file holds none; names the `setting`.
    """
    try:
        return ssl.create_default_context(cafile=authorities)
    except ssl.SSLError:
        raise StartupError(f"{setting}={authorities}: holds no certificate in PEM format") from None
    except OSError as error:
        raise StartupError(f"{setting}={authorities}: cannot be read: {error.strerror}") from None


def pinned_context(identity: ServerIdentity) -> ssl.SSLContext:
    """For calls to the server that has this identity, at whatever address: it alone is trusted."""

    def trust(pair: KeyPair) -> None:
        context.load_verify_locations(cadata=pair.certificate.decode("ascii"))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    trust(identity.pair())
    identity.follow(trust)
    return context


def _server_context(identity: IdentityInFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    return context


def _configuration(pair: KeyPair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)])


def _read_pair(certificate: Path, key: Path) -> KeyPair:
    try:
        return KeyPair.parse(_read(certificate, CERTIFICATE_SETTING), _read(key, KEY_SETTING))
    except BadKeyPair as error:
        path = certificate if error.part == "certificate" else key
        raise StartupError(f"{_SETTINGS[error.part]}={path}: {error}") from None


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartupError(f"{setting}={printable(str(path))}: cannot be read: {error.strerror}") from None


def _file_state(path: Path) -> _FileState | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _log_pair(what: str, pair: KeyPair) -> None:
    now = datetime.now(UTC)
    days = round(pair.days_left(now), 1)
    known = {"names": pair.names, "expires": pair.not_after.isoformat(), "days_left": days}
    if days < 0:
        log.warning(f"{what}, but it has expired: clients will refuse it; renew it", **known)
    elif now < pair.not_before:
        log.warning(f"{what}, but it is not valid yet", valid_from=pair.not_before.isoformat(), **known)
    elif days < WARN_DAYS:
        log.warning(f"{what}; it expires soon: renew it", **known)
    else:
        log.info(what, **known)
