"""What certificate files say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from fedcombiner.servicekit.certificates import BadKeyPair, KeyPair, names_of

SUFFIXES: Final = (".crt", ".pem", ".cer")
_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class Described:
    """One certificate of a file.

    Attributes:
        names: DNS names and IP addresses that it is for; of an authority, its own name.
        key_fits: whether the key beside it (`x.key` for `x.crt`) is its own; None: there is none.
        sha256: fingerprint, hexadecimal.
    """

    file: Path
    names: tuple[str, ...]
    authority: bool
    issuer: str
    not_before: datetime
    not_after: datetime
    key_fits: bool | None
    sha256: str


def describe(path: Path) -> list[Described]:
    """The certificates in a PEM file, or in all files of a directory that hold some.

    Raises:
        ValueError: there is none.
        OSError: a file cannot be read.
    """
    files = _files(path) if path.is_dir() else [path]
    found = [one for file in files for one in _in_file(file)]
    if not found:
        raise ValueError(f"{path}: holds no certificate in PEM format")
    return found


def _files(directory: Path) -> list[Path]:
    return sorted(
        file for file in directory.iterdir() if file.suffix in SUFFIXES and _BEGIN in file.read_bytes()
    )


def _in_file(file: Path) -> Iterator[Described]:
    pem = file.read_bytes()
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ValueError(f"{file}: holds no certificate in PEM format") from None
    for index, one in enumerate(certificates):
        yield Described(
            file=file,
            names=names_of(one),
            authority=_is_authority(one),
            issuer=one.issuer.rfc4514_string(),
            not_before=one.not_valid_before_utc,
            not_after=one.not_valid_after_utc,
            key_fits=_key_fits(file, pem) if index == 0 else None,
            sha256=one.fingerprint(hashes.SHA256()).hex(),
        )


def _key_fits(file: Path, pem: bytes) -> bool | None:
    try:
        KeyPair.parse(pem, file.with_suffix(".key").read_bytes())
    except OSError:
        return None
    except BadKeyPair:
        return False
    return True


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
