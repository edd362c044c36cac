"""A directory with an authority and a server's certificate, named as in a Kubernetes secret of type TLS."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from fedcombiner.certs.authority import Authority, general_name
from fedcombiner.certs.reading import describe
from fedcombiner.servicekit.certificates import BadKeyPair

CA_CERTIFICATE: Final = "ca.crt"  # for clients
CA_KEY: Final = "ca.key"  # signs; servers have no use for it
CERTIFICATE: Final = "tls.crt"  # for servers
KEY: Final = "tls.key"

# A certificate that nobody has to change by hand is of use on this machine, too.
THIS_MACHINE: Final = ("localhost", "127.0.0.1", "::1")


def create(
    directory: Path,
    hosts: Sequence[str],
    *,
    now: datetime,
    lifetime: timedelta,
    authority_lifetime: timedelta,
) -> None:
    """Make an authority and a certificate for `hosts` and this machine: all four files, or none.

    Raises:
        FileExistsError: one of them is there; nothing is ever overwritten.
        ValueError: a host that is none.
        OSError: they cannot be written.
    """
    names = _names(hosts)
    authority = Authority.create(
        f"federated-combiner {secrets.token_hex(4)}", now=now, lifetime=authority_lifetime
    )
    issued = authority.issue(names, now=now, lifetime=min(lifetime, authority_lifetime))
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        for name, data in (
            (CA_KEY, authority.key),
            (CA_CERTIFICATE, authority.certificate),
            (KEY, issued.key),
            (CERTIFICATE, issued.certificate),
        ):
            _write_new(directory / name, data)
            undo.callback((directory / name).unlink)
        undo.pop_all()


def renew(directory: Path, hosts: Sequence[str], *, now: datetime, lifetime: timedelta) -> None:
    """Replace the server's certificate and key; for the names that it had, unless `hosts` are given.

    Servers that read them meanwhile keep the old pair until both are there.

    Raises:
        ValueError: what is in the directory is no such authority, or a host is none.
        OSError: files cannot be read or written.
    """
    authority = _load_authority(directory / CA_CERTIFICATE, directory / CA_KEY)
    names = _names(hosts) if hosts else describe(directory / CERTIFICATE)[0].names
    issued = authority.issue(names, now=now, lifetime=min(lifetime, authority.not_after - now))
    _replace(directory / KEY, issued.key)
    _replace(directory / CERTIFICATE, issued.certificate)


def _load_authority(certificate: Path, key: Path) -> Authority:
    try:
        return Authority.load(certificate.read_bytes(), key.read_bytes())
    except BadKeyPair as error:
        raise ValueError(f"{key if error.part == 'key' else certificate}: {error}") from None


def _names(hosts: Sequence[str]) -> list[str]:
    for host in hosts:
        general_name(host)
    return list(dict.fromkeys([*hosts, *THIS_MACHINE]))


def _write_new(path: Path, data: bytes) -> None:
    """Complete, or not there. Keys are for their owner only. Raises FileExistsError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if _is_key(path) else 0o644)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        path.unlink()
        raise


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    _write_new(fresh, data)
    try:
        fresh.replace(path)
    except OSError:
        fresh.unlink()
        raise


def _is_key(path: Path) -> bool:
    return path.suffix == ".key"
