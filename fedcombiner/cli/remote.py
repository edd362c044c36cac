"""Options of every command against a server, which may stand before or after the name of the command."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from fedcombiner.cli.output import options


def _set_server(context: typer.Context, server: str | None) -> None:
    if server is not None:
        context.obj = replace(options(context), server=server)


def _set_json(context: typer.Context, as_json: bool) -> None:
    if as_json:
        context.obj = replace(options(context), as_json=True)


def _set_ca(context: typer.Context, ca: Path | None) -> None:
    if ca is not None:
        context.obj = replace(options(context), ca=ca)


def _set_tls(context: typer.Context, tls: bool) -> None:
    if tls:
        context.obj = replace(options(context), tls=True)


CA_HELP = "Speak TLS; certificates of the authorities to believe, PEM."
TLS_HELP = "Speak TLS with a server whose certificate a public authority has signed."

Ca = Annotated[Path | None, typer.Option("--ca", metavar="FILE", callback=_set_ca, help=CA_HELP)]
Tls = Annotated[bool, typer.Option("--tls", callback=_set_tls, help=TLS_HELP)]
_SERVER = Annotated[
    str | None,
    typer.Option("--server", metavar="HOST:PORT", callback=_set_server, help="The combiner to talk to."),
]
_JSON = Annotated[bool, typer.Option("--json", callback=_set_json, help="JSON, one object a line.")]
# By the name of the parameter: the option and its default.
_OPTIONS: Final[dict[str, tuple[Any, object]]] = {
    "server": (_SERVER, None),
    "as_json": (_JSON, False),
    "ca": (Ca, None),
    "tls": (Tls, False),
}


def remote(command: Callable[..., None], *, without: Collection[str] = ()) -> Callable[..., None]:
    """Give a command the options here. Their callbacks put them where `output.options` finds them."""
    added = {name: option for name, option in _OPTIONS.items() if name not in without}

    @functools.wraps(command)
    def with_options(*args: Any, **kwargs: Any) -> None:
        command(*args, **{name: value for name, value in kwargs.items() if name not in added})

    own = inspect.signature(command, eval_str=True)
    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in added.items()
    ]
    with_options.__signature__ = own.replace(parameters=[*own.parameters.values(), *extra])  # type: ignore[attr-defined]
    with_options.__annotations__ = {
        name: parameter.annotation
        for name, parameter in with_options.__signature__.parameters.items()  # type: ignore[attr-defined]
    }
    del with_options.__wrapped__  # typer would look through it and find the bare command
    return with_options
