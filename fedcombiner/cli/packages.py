"""`combiner package`: what clients run, put at the discovery that gives it to them."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer

from fedcombiner.cli.output import UNREACHABLE, USAGE, fail, finish, options, show_list, show_one
from fedcombiner.cli.remote import remote
from fedcombiner.client.errors import ServerUnreachable
from fedcombiner.client.packages import PackagesClient
from fedcombiner.packages.archive import PackageLimits, check_archive
from fedcombiner.packages.names import BadPackage
from fedcombiner.packages.packing import pack

T = TypeVar("T")

app = typer.Typer(
    help="Put, list and get compute packages, and choose which one clients are given (docs/discovery.md).",
    no_args_is_help=True,
)
_COLUMNS: Final = ("name", "id", "size", "created", "active")
_ENDINGS: Final = re.compile(r"(\.tar\.gz|\.tgz|\.zip)$")
# How large an archive may be is the discovery's to say.
_LIMITS: Final = PackageLimits(archive_bytes=1 << 40)
_at_discovery = partial(remote, without=("server", "tls"))

Url = Annotated[
    str,
    typer.Option("--discovery", envvar="COMBINER_DISCOVERY", metavar="URL", help="The discovery to talk to."),
]
Wanted = Annotated[str, typer.Argument(help="A name, or an id, of which six characters are enough.")]
DEFAULT_URL: Final = "http://localhost:8092"


@app.command()
@_at_discovery
def put(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(exists=True, readable=True, help="A folder with fedn.yaml, a .tar.gz or a .zip."),
    ],
    name: Annotated[str, typer.Option(help="What to call it; as the folder or file if empty.")] = "",
    activate: Annotated[bool, typer.Option(help="Give it to clients from now on.")] = True,
    url: Url = DEFAULT_URL,
) -> None:
    """Pack and check a folder or an archive, and upload it. The same files are the same package.

    Examples:
      combiner package put ./client --name mnist
    """
    name = name or _ENDINGS.sub("", source.resolve().name)

    async def work(client: PackagesClient) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as scratch:
            row = await client.put(await asyncio.to_thread(_checked, source, Path(scratch)), name)
        return await client.activate(row["id"]) if activate else row

    show_one(context, _call(context, url, work))


@app.command("list")
@_at_discovery
def list_packages(context: typer.Context, url: Url = DEFAULT_URL) -> None:
    """List packages, the oldest first.

    Examples:
      combiner package list
    """
    found = _call(context, url, lambda client: client.list())
    show_list(context, found, _COLUMNS, "No package yet: `combiner package put DIR`.")


@app.command()
@_at_discovery
def get(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(dir_okay=False, help="Where to; appears whole or not at all.")],
    package: Wanted,
    url: Url = DEFAULT_URL,
) -> None:
    """Download a package; of a name, the newest.

    Examples:
      combiner package get client.tgz mnist
    """
    show_one(context, _call(context, url, lambda client: client.get(package, file)))


@app.command()
@_at_discovery
def activate(context: typer.Context, package: Wanted, url: Url = DEFAULT_URL) -> None:
    """Give a package to clients from now on; of a name, the newest.

    Examples:
      combiner package activate mnist
    """
    show_one(context, _call(context, url, lambda client: client.activate(package)))


def _checked(source: Path, scratch: Path) -> Path:
    try:
        archive = pack(source, scratch / "package.tgz", _LIMITS)
        check_archive(archive, _LIMITS)
    except BadPackage as error:
        raise fail(f"{source} is no compute package: {error}", USAGE) from None
    return archive


def _call(context: typer.Context, url: str, work: Callable[[PackagesClient], Coroutine[Any, Any, T]]) -> T:
    given = options(context)

    async def run() -> T:
        async with PackagesClient(url, trust=given.trust, token=given.token) as client:
            try:
                return await work(client)
            except ServerUnreachable as error:
                hint = "is it running? --discovery or COMBINER_DISCOVERY names another one"
                raise fail(f"{error.message}\n  {hint}", UNREACHABLE) from None

    return finish(run())
