"""How the command speaks: tables for people, one JSON object a line for programs, one sentence for errors."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from fedcombiner.cli.hints import next_step
from fedcombiner.client.errors import ServerUnreachable, TlsFailed, is_final
from fedcombiner.client.operator import OperatorClient
from fedcombiner.client.trust import NO_TLS, ONLY_TLS, Trust
from fedcombiner.servicekit.errors import ServiceError

T = TypeVar("T")

PIPE_WIDTH = 10_000
WATCH_PATIENCE_S = 60.0  # a server may restart under somebody who watches
DONE, JOB_FAILED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130


@dataclass(frozen=True)
class Options:
    """Of the whole command."""

    server: str = "localhost:12080"
    as_json: bool = False
    ca: Path | None = None
    tls: bool = False
    token: str = ""

    @property
    def trust(self) -> Trust | None:
        """What `--ca` and `--tls` say; None: plaintext. Raises typer.BadParameter.

        Read when it is used: with COMBINER_CA set, `combiner certs` may be about to make that file.
        """
        if self.ca is None:
            return Trust() if self.tls else None
        try:
            return Trust.in_file(self.ca)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise typer.BadParameter(f"{self.ca}: {reason}", param_hint="--ca") from None


def options(context: typer.Context) -> Options:
    return context.obj if isinstance(context.obj, Options) else Options()


def fail(message: str, code: int) -> typer.Exit:
    """Say what is wrong on stderr; raise what this returns."""
    sys.stderr.write(f"combiner: {message}\n")
    return typer.Exit(code)


def call(
    context: typer.Context,
    work: Callable[[OperatorClient], Coroutine[Any, Any, T]],
    *,
    patience: float = 0.0,
) -> T:
    """Run `work` against the server; what goes wrong becomes a sentence and an exit code.

    `patience` is how many seconds a server that is away is waited for.
    """

    given = options(context)
    server, trust, token = given.server, given.trust, given.token

    async def run() -> T:
        async with OperatorClient(server, trust=trust, token=token, patience=patience) as operator:
            return await work(operator)

    return finish(run())


def finish(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; what goes wrong becomes a sentence and an exit code."""
    try:
        return asyncio.run(work)
    except (ServerUnreachable, TlsFailed) as error:
        raise unreachable(error) from None
    except ServiceError as error:
        said = "\n  ".join(filter(None, (error.message, next_step(error))))
        raise fail(said, USAGE if is_final(error) else JOB_FAILED) from None
    except OSError as error:  # of a local file; those of the network have become the above
        raise fail(f"{error.filename or 'file'}: {error.strerror or error}", USAGE) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def unreachable(error: ServerUnreachable | TlsFailed) -> typer.Exit:
    """Say what is wrong between here and the server, and what to do about it; raise what this returns."""
    hint = "`combiner certs show` looks at certificate files; --ca FILE names another authority"
    if isinstance(error, ServerUnreachable):
        hint = "is it running? `combiner serve` starts one; --server or COMBINER_SERVER names another"
    elif error.trouble == ONLY_TLS:
        hint = "--ca FILE or COMBINER_CA names the certificate of its authority; --tls is for public ones"
    elif error.trouble == NO_TLS:
        hint = "leave out --ca and --tls (COMBINER_CA, COMBINER_TLS), or name the port that speaks TLS"
    return fail(f"{error.message}\n  {hint}", UNREACHABLE)


def confirm(question: str) -> None:
    """Ask on stderr, so that what a program reads stays clean; ends the command if the answer is no."""
    if not typer.confirm(question, err=True):
        raise fail("nothing was done; --yes does it without a question", JOB_FAILED)


def print_json(row: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def show_list(
    context: typer.Context, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], empty: str
) -> None:
    if options(context).as_json:
        for row in rows:
            print_json(row)
        return
    console = _console()
    if not rows:
        console.print(empty, markup=False)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")  # an id that is cut is of no use
    for row in rows:
        table.add_row(*(Text(_cell(row.get(column))) for column in columns))
    console.print(table)


def show_one(context: typer.Context, row: Mapping[str, Any]) -> None:
    if options(context).as_json:
        print_json(row)
        return
    table = Table("key", Column("value", overflow="fold"), show_header=False, box=None, pad_edge=False)
    for key, value in row.items():
        table.add_row(key, Text(_cell(value)))
    _console().print(table)


def _console() -> Console:
    """As wide as the terminal; into a file or a pipe a row is a line, however long."""
    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)


def _cell(value: object) -> str:
    if value is None or value == [] or value == {}:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "  ".join(f"{key} {_cell(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return "\n".join(_cell(inner) for inner in value)
    return str(value)
