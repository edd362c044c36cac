"""FEDn's wrapper for a channel to a combiner, and whom it believes."""

from __future__ import annotations

from typing import Final

import grpc

from fedcombiner.client.link import channel_options
from fedcombiner.client.trust import Trust
from fedcombiner.servicekit.binding import host_port
from fedcombiner.servicekit.errors import InvalidArgument

MAX_PORT: Final = 65_535


class Channel:
    """Wrapper for a gRPC channel, for blocking stubs.

    Args:
        address: host name or IP address of the combiner; the certificate's names are checked against it.
        port: its port.
        certificate: PEM text of the authority to trust, or of the combiner's own certificate; without one
            the channel is in plaintext.

    Raises:
        InvalidArgument: the address or the port cannot be one, or `certificate` holds none.
    """

    def __init__(self, address: str, port: int, certificate: bytes | str | None = None) -> None:
        self.address = address
        self.port = port
        self.certificate = certificate
        target = target_of(address, port)
        options = channel_options(target)
        if trust := trust_in(certificate):
            self._channel = grpc.secure_channel(target, trust.credentials(), options=options)
        else:
            self._channel = grpc.insecure_channel(target, options=options)

    def get_channel(self) -> grpc.Channel:
        """The channel, which connects at its first call; the caller may close it."""
        return self._channel


def target_of(address: object, port: object) -> str:
    """`host:port`. Raises InvalidArgument naming the one that cannot be."""
    if not isinstance(address, str) or not address or not address.isprintable() or " " in address:
        raise InvalidArgument("address", address, "a host name or an IP address")
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= MAX_PORT:
        raise InvalidArgument("port", port, f"a whole number from 1 to {MAX_PORT}")
    return host_port(address, port)


def trust_in(certificate: bytes | str | None) -> Trust | None:
    """Believe what this certificate has signed, or it itself, and nobody else; None for plaintext.

    Raises:
        InvalidArgument: it holds no certificate.
    """
    try:
        return Trust(as_bytes(certificate)) if certificate else None
    except ValueError:
        raise InvalidArgument("certificate", certificate, "a certificate in PEM format") from None


def as_bytes(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else text
