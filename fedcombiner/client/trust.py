"""Whose certificates a client believes, and why a TLS conversation with a server cannot begin."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import grpc
import httpx

from fedcombiner.servicekit.errors import printable

ONLY_TLS: Final = "the server speaks TLS, this client does not"
NO_TLS: Final = "the server does not speak TLS"

_TIMEOUT: Final = 3.0  # seconds a look at a server may take
# Of OpenSSL: self-signed, or an issuer that is not among the trusted ones.
_UNKNOWN_ISSUER: Final = frozenset({2, 18, 19, 20, 21})


@dataclass(frozen=True, slots=True)
class Trust:
    """TLS with servers whose certificate is for the name that they are called by, and signed by one of these.

    Attributes:
        authorities: certificates, PEM; None: the public authorities.

    Raises:
        ValueError: there is no certificate in `authorities`.
    """

    authorities: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.authorities is not None:
            self.context()

    @classmethod
    def in_file(cls, path: Path) -> Self:
        """Raises OSError, and ValueError for a file that holds no certificate."""
        return cls(path.read_bytes())

    def credentials(self) -> grpc.ChannelCredentials:
        """For gRPC channels."""
        return grpc.ssl_channel_credentials(self.authorities)

    def context(self) -> ssl.SSLContext:
        """For https."""
        if self.authorities is None:
            return httpx.create_ssl_context()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            # Comments between certificates may be in any encoding.
            context.load_verify_locations(cadata=self.authorities.decode("ascii", "ignore"))
        except (ssl.SSLError, ValueError):
            raise ValueError("there is no certificate in PEM format") from None
        return context


async def tls_trouble(address: str, trust: Trust | None) -> str:
    """Why a client with this `trust` (None: plaintext) and the server at `host:port` do not get to talk.

    Looks at the server once, without sending it anything. Empty if it is not about TLS.
    """
    host, _, port = address.rpartition(":")
    context = _blind() if trust is None else trust.context()
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(_TIMEOUT):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=context)
    except ssl.SSLCertVerificationError as error:
        return f"the server's certificate is refused: {_refusal(error)}"
    except ssl.SSLError:
        return "" if trust is None else NO_TLS
    except (OSError, ValueError):
        return ""
    writer.close()
    return ONLY_TLS if trust is None else ""


def _blind() -> ssl.SSLContext:
    """Only for finding out whether a server speaks TLS at all: nothing is sent over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _refusal(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in _UNKNOWN_ISSUER:
        return "no authority that this client trusts has signed it"
    return printable(error.verify_message.rstrip("."))
