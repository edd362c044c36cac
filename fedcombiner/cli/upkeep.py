"""`combiner gc` and `combiner model prune`: what nobody needs any more, and what nobody wants any more."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Final

import typer

from fedcombiner.cli import rows
from fedcombiner.cli.output import call, confirm, options, print_json, show_list
from fedcombiner.cli.remote import remote
from fedcombiner.wire.pb.combiner.v1 import upkeep_pb2

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
_UNITS: Final = ("B", "kB", "MB", "GB", "TB")


@remote
def gc(context: typer.Context, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Remove what nothing needs any more: unnamed objects, updates of ended jobs, expired records.

    The combiner does the same by itself every hour; docs/house-keeping.md has the rules.

    Examples:
      combiner gc --dry-run
      combiner gc --yes
    """
    if dry_run or not yes:
        found = call(context, lambda operator: operator.collect_garbage(dry_run=True))
        _show(context, found)
        if dry_run or not found:
            return
        confirm(f"Remove {_sum(found)}?")
    gone = call(context, lambda operator: operator.collect_garbage(dry_run=False))
    _done(context, gone)


@remote
def prune(
    context: typer.Context,
    keep: Annotated[int, typer.Option(min=1, help="Of each session keep the N newest models.")],
    keep_best: Annotated[
        str, typer.Option(metavar="METRIC", help="And the one that is best by this metric.")
    ] = "",
    lowest_is_best: Annotated[
        bool, typer.Option("--lowest-is-best", help="Of a metric such as loss, the lowest is the best.")
    ] = False,
    session: Annotated[str, typer.Option(help="Only of this session.")] = "",
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Remove old models that rounds made, for good. Never the newest model, nor one that is in use.

    Models that somebody put stay. Export the metrics first: combiner session export.

    Examples:
      combiner model prune --keep 5 --dry-run
      combiner model prune --keep 1 --keep-best accuracy --session digits
      combiner model prune --keep 3 --keep-best loss --lowest-is-best --yes
    """

    def go(*, dry_run: bool, only: Sequence[str] = ()) -> list[upkeep_pb2.Removal]:
        return call(
            context,
            lambda operator: operator.prune_models(
                keep,
                dry_run=dry_run,
                session_id=session,
                keep_best=keep_best,
                lowest_is_best=lowest_is_best,
                only=only,
            ),
        )

    shown: list[str] = []
    if dry_run or not yes:
        found = go(dry_run=True)
        _show(context, found)
        if dry_run or not found:
            return
        confirm(f"Remove {_sum(found)} for good?")
        shown = [removal.id for removal in found]
    _done(context, go(dry_run=False, only=shown))


def _done(context: typer.Context, gone: Sequence[upkeep_pb2.Removal]) -> None:
    if options(context).as_json:
        for removal in gone:
            print_json(rows.removal(removal, removed=True))
    else:
        sys.stdout.write(f"removed {_sum(gone)}\n")


def _show(context: typer.Context, found: Sequence[upkeep_pb2.Removal]) -> None:
    shown = [rows.removal(removal, removed=False) for removal in found]
    show_list(context, shown, ("kind", "id", "size", "session_id", "why"), "There is nothing to remove.")


def _sum(removals: Sequence[upkeep_pb2.Removal]) -> str:
    if not removals:
        return "nothing"
    kinds = [removal.kind for removal in removals]
    counts = ", ".join(
        f"{kinds.count(kind)} {kind}{'s' * (kinds.count(kind) > 1)}" for kind in dict.fromkeys(kinds)
    )
    size = sum(removal.size for removal in removals)
    return f"{counts} ({_bytes(size)})" if size else counts


def _bytes(size: float) -> str:
    for unit in _UNITS[:-1]:
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} {_UNITS[-1]}"
