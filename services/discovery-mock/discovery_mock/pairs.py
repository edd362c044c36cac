"""The certificate and key that a combiner serves TLS with, handed to it in the answer to its announcement."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import structlog
from starlette.requests import Request

from fedcombiner.access.http import admitted
from fedcombiner.access.roles import Role
from fedcombiner.servicekit.certificates import BadKeyPair, KeyPair
from fedcombiner.servicekit.errors import StartupError

log = structlog.get_logger(__name__)


class CombinerPair:
    """A pair in two PEM files, read anew for each announcement, so that a renewed one is handed on.

    Raises:
        StartupError: it cannot be used now.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self._read()

    def for_sender(self, request: Request) -> Mapping[str, str] | None:
        """Only over https, and only to whoever has shown a combiner's token."""
        sender = admitted(request.scope)
        if request.scope["scheme"] != "https" or sender is None or sender.role is not Role.COMBINER:
            return None
        try:
            return self._read().as_announcement()
        except StartupError as error:
            log.error("a combiner asks for its certificate, which cannot be used", reason=str(error))
            return None

    def _read(self) -> KeyPair:
        files = {"certificate": self._certificate, "key": self._key}
        try:
            return KeyPair.parse(*(path.read_bytes() for path in files.values()))
        except OSError as error:
            raise StartupError(f"COMBINER_CERT_FILE, COMBINER_KEY_FILE: cannot be read: {error}") from None
        except BadKeyPair as error:
            setting = {"certificate": "COMBINER_CERT_FILE", "key": "COMBINER_KEY_FILE"}[error.part]
            raise StartupError(f"{setting}={files[error.part]}: {error}") from None
