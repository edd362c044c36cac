"""`combiner backup` and `combiner restore`: what Redis holds, in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from fedcombiner.cli import rows
from fedcombiner.cli.output import JOB_FAILED, USAGE, call, confirm, fail, show_one
from fedcombiner.cli.remote import remote
from fedcombiner.client.backup import BackupFile, read_backup
from fedcombiner.wire.backup import NotABackup

_NAMED: Final = 3


@remote
def backup(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(dir_okay=False, help="A new file; appears whole or not at all.")],
) -> None:
    """Save the state of the stack: sessions, jobs, records of models, settings. Rounds may go on meanwhile.

    The models themselves are in the object store, which has backups of its own; that they are there is
    checked. Tokens are not saved.

    Example:
      combiner backup state-$(date +%F).gz
    """
    saved = call(context, lambda operator: operator.backup(file))
    show_one(context, rows.backup(saved, str(file)))
    missing = saved.end.missing_models
    if missing:
        raise fail(f"saved, but {_not_there(missing, len(missing))}", JOB_FAILED)


@remote
def restore(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)],
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove the sessions, jobs and models that are there.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Put back what `combiner backup` saved. What had not ended goes on.

    The state must be empty, or is replaced with --replace; nothing may be at work. If it is interrupted,
    restore again with --replace.

    Examples:
      combiner restore state-2026-11-24.gz
      combiner restore state-2026-11-24.gz --replace --yes
    """
    found = _read(file)
    if replace and not yes:
        confirm(f"Remove what is there, and put back {_said(found)}?")
    reply = call(context, lambda operator: operator.restore(file, replace=replace))
    show_one(context, rows.restored(reply))
    if reply.missing:
        raise fail(f"restored, but {_not_there(reply.missing_models, reply.missing)}", JOB_FAILED)


def _read(file: Path) -> BackupFile:
    try:
        return read_backup(file)
    except NotABackup as error:
        raise fail(f"{file} cannot be restored: {error}", USAGE) from None
    except OSError as error:
        raise fail(f"{file}: {error.strerror or error}", USAGE) from None


def _said(found: BackupFile) -> str:
    counts = ", ".join(f"{found.counts[kind]} {kind}s" for kind in ("session", "job", "model"))
    return f"{counts} of {found.header.created_at}"


def _not_there(models: Sequence[str], count: int) -> str:
    names = ", ".join(models[:_NAMED]) + (" …" if count > _NAMED else "")
    return (
        f"{count} of its models are not in the object store: {names}\n"
        "  bring the object store back from its own backup; what works on these models fails until then"
    )
