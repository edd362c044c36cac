"""`combiner certs`: certificates for stacks whose names no public authority signs for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from fedcombiner.cli.output import USAGE, fail, options, show_list
from fedcombiner.cli.rows import Row

if TYPE_CHECKING:
    from fedcombiner.certs.reading import Described

NO_CERTS: Final = "pip install 'federated-combiner[certs]'"
COLUMNS: Final = ("file", "names", "authority", "expires", "days_left", "key_fits")

app = typer.Typer(
    help="Make certificates for TLS with an authority of your own, and look at them.", no_args_is_help=True
)

Directory = Annotated[Path, typer.Argument(file_okay=False, help="Where the files are.")]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--host", metavar="NAME", help="A DNS name or an IP address of the server; may be said many times."
    ),
]
Days = Annotated[int, typer.Option(min=1, max=3650, help="How long the server's certificate is valid.")]


@app.command()
def init(
    context: typer.Context,
    directory: Directory,
    host: Hosts = None,
    days: Days = 397,
    ca_days: Annotated[int, typer.Option(min=1, max=36500, help="How long the authority is.")] = 3650,
) -> None:
    """Make an authority, and a certificate that it signs for these hosts and for this machine.

    Clients get ca.crt, servers tls.crt and tls.key. Nothing is ever overwritten.

    Example: combiner certs init certs --host fl.example.org --host 10.0.0.5
    """
    with _explained():
        from fedcombiner.certs.directory import create

        lifetime, authority_lifetime = timedelta(days=days), timedelta(days=ca_days)
        now = datetime.now(UTC)
        create(directory, host or [], now=now, lifetime=lifetime, authority_lifetime=authority_lifetime)
        _show(context, directory)
    _say(
        context,
        f"server:  combiner serve --tls-cert {directory}/tls.crt --tls-key {directory}/tls.key",
        f"clients: combiner --ca {directory}/ca.crt status",
        f"keep {directory}/ca.key where no server can read it: it is for `combiner certs renew {directory}`",
    )


@app.command()
def renew(context: typer.Context, directory: Directory, host: Hosts = None, days: Days = 397) -> None:
    """Replace the server's certificate, for the same names unless others are given.

    Running servers show it from the next connection on; clients keep their ca.crt.

    Example: combiner certs renew certs
    """
    with _explained():
        from fedcombiner.certs.directory import renew as replace

        replace(directory, host or [], now=datetime.now(UTC), lifetime=timedelta(days=days))
        _show(context, directory)


@app.command()
def show(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(exists=True, help="A PEM file, or a directory of some.")],
) -> None:
    """What certificates are for, until when, and whether the key beside them is theirs.

    Example: combiner certs show certs
    """
    with _explained():
        _show(context, path)


def _show(context: typer.Context, path: Path) -> None:
    from fedcombiner.certs.reading import describe

    now = datetime.now(UTC)
    show_list(context, [_row(one, now) for one in describe(path)], COLUMNS, "")


def _row(one: Described, now: datetime) -> Row:
    return {
        "file": str(one.file),
        "names": list(one.names),
        "authority": one.authority,
        "issuer": one.issuer,
        "valid_from": one.not_before.isoformat(),
        "expires": one.not_after.isoformat(),
        "days_left": round((one.not_after - now) / timedelta(days=1), 1),
        "key_fits": one.key_fits,
        "sha256": one.sha256,
    }


def _say(context: typer.Context, *lines: str) -> None:
    if not options(context).as_json:
        sys.stdout.writelines(f"{line}\n" for line in lines)


@contextmanager
def _explained() -> Iterator[None]:
    """What is wrong becomes a sentence."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise fail(f"{error.name} is missing; {NO_CERTS}", USAGE) from None
    except FileExistsError as error:
        hint = "nothing is overwritten; `combiner certs renew` replaces the server's certificate"
        raise fail(f"{error.filename} is there already\n  {hint}", USAGE) from None
    except OSError as error:
        raise fail(f"{error.filename}: {error.strerror}", USAGE) from None
    except ValueError as error:
        raise fail(str(error), USAGE) from None
