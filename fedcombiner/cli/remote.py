"""`--server` and `--json` for every command against a server, also after the name of the command."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import typer

from fedcombiner.cli.output import options


def _set_server(context: typer.Context, server: str | None) -> None:
    if server is not None:
        context.obj = replace(options(context), server=server)


def _set_json(context: typer.Context, as_json: bool) -> None:
    if as_json:
        context.obj = replace(options(context), as_json=True)


_SERVER = Annotated[
    str | None,
    typer.Option("--server", metavar="HOST:PORT", callback=_set_server, help="The combiner to talk to."),
]
_JSON = Annotated[bool, typer.Option("--json", callback=_set_json, help="JSON, one object a line.")]


def remote(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--server` and `--json`. Their callbacks put them where `output.options` finds them."""

    @functools.wraps(command)
    def with_options(*args: Any, server: str | None = None, as_json: bool = False, **kwargs: Any) -> None:
        command(*args, **kwargs)

    own = inspect.signature(command, eval_str=True)
    extra = [
        inspect.Parameter("server", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_SERVER),
        inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_JSON),
    ]
    with_options.__signature__ = own.replace(parameters=[*own.parameters.values(), *extra])  # type: ignore[attr-defined]
    with_options.__annotations__ = {
        name: parameter.annotation
        for name, parameter in with_options.__signature__.parameters.items()  # type: ignore[attr-defined]
    }
    del with_options.__wrapped__  # typer would look through it and find the bare command
    return with_options
