"""A server's certificate and its private key, checked when they are read."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

_SECONDS_A_DAY: Final = 86_400

Part = Literal["certificate", "key"]


class BadKeyPair(ValueError):
    """Why a certificate and a key cannot be used together; `part` is the one to look at."""

    def __init__(self, part: Part, reason: str) -> None:
        super().__init__(reason)
        self.part = part


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and the private key that fits it.

    Attributes:
        certificate: PEM, the server's own first, then those that signed it.
        key: PEM, without a passphrase.
        names: DNS names and IP addresses that the certificate is for.
    """

    certificate: bytes
    key: bytes = field(repr=False)
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime

    @classmethod
    def parse(cls, certificate: bytes, key: bytes) -> Self:
        """Raises BadKeyPair. Whether the certificate is valid today is left to the caller."""
        own = _own_certificate(certificate)
        _check_fit(own, key)
        return cls(certificate, key, names_of(own), own.not_valid_before_utc, own.not_valid_after_utc)

    @classmethod
    def from_announcement(cls, reply: Mapping[str, object]) -> Self:
        """The pair in a discovery's answer to an announcement, as FEDn sends it. Raises BadKeyPair."""
        return cls.parse(_decoded(reply, "certificate"), _decoded(reply, "key"))

    def as_announcement(self) -> dict[str, str]:
        """The pair as fields of a discovery's answer. It holds the key: for the combiner's eyes only."""
        return {
            "certificate": base64.b64encode(self.certificate).decode("ascii"),
            "key": base64.b64encode(self.key).decode("ascii"),
        }

    def days_left(self, now: datetime) -> float:
        """Until the certificate expires; negative afterwards."""
        return (self.not_after - now).total_seconds() / _SECONDS_A_DAY


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The names that clients accept it for: those of its SAN, or else its common name, as gRPC does."""
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return tuple(str(attribute.value) for attribute in common)
    addresses = san.get_values_for_type(x509.IPAddress)
    return (*san.get_values_for_type(x509.DNSName), *(str(address) for address in addresses))


def _own_certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(pem)[0]
    except ValueError:
        raise BadKeyPair("certificate", "holds no certificate in PEM format") from None


def _check_fit(certificate: x509.Certificate, key: bytes) -> None:
    try:
        private = serialization.load_pem_private_key(key, password=None)
        fits = private.public_key() == certificate.public_key()
    except TypeError:
        raise BadKeyPair("key", "the private key has a passphrase; store it without one") from None
    except UnsupportedAlgorithm:
        raise BadKeyPair("key", "is of a kind that is not supported; use an RSA or EC key") from None
    except ValueError:
        raise BadKeyPair("key", "holds no private key in PEM format") from None
    if not fits:
        raise BadKeyPair("key", "the private key does not fit the certificate")


def _decoded(reply: Mapping[str, object], part: Part) -> bytes:
    text = reply.get(part)
    if not isinstance(text, str) or not text:
        raise BadKeyPair(part, f"the answer has no {part}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadKeyPair(part, f"the {part} in the answer is not base64") from None
