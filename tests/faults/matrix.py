"""The matrix of faults: `python -m tests.faults.matrix`.

Several stacks run at once, each with one case after the other; one on which something went wrong is kept
for a look and replaced by a new one.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.faults.cases import PARTS, Case, chosen, needs_a_replica
from tests.faults.notes import Line, Notes
from tests.faults.replicated import ReplicatedStack
from tests.faults.report import errors, markdown, numbers, takeovers, told
from tests.faults.stack import Stack, programs
from tests.faults.trial import Count, NotReached, Outcome, Trial

TRIES: Final = 4


async def run(notes: Notes, stacks: int) -> None:
    """All cases of which there are no notes yet."""
    for replicated in (False, True):
        cases = (case for case in notes.missing() if needs_a_replica(case) is replicated)
        await _on_stacks(stacks, ReplicatedStack if replicated else Stack, cases, notes)


async def _on_stacks(stacks: int, kind: type[Stack], waiting: Iterator[Case], notes: Notes) -> None:
    async def work() -> None:
        for case in waiting:
            await _on_one_stack(kind, case, waiting, notes)

    async with asyncio.TaskGroup() as group:
        for _ in range(stacks):
            group.create_task(work())


class _Failed(Exception):
    """The case before is noted as failed; its stack is not to be used any more."""


async def _on_one_stack(kind: type[Stack], case: Case, following: Iterator[Case], notes: Notes) -> None:
    """That case and those that follow, until there are no more or one fails."""
    trial = Trial(stack=kind())
    try:
        async with trial:
            await _try(trial, case, notes)
            for case in following:
                await _try(trial, case, notes)
    except _Failed:
        pass  # what is left of the stack tells why
    except Exception as error:
        raise RuntimeError(f"the stack did not come up; logs: {trial.stack.directory}") from error


async def _try(trial: Trial, case: Case, notes: Notes) -> None:
    outcome, wrong = None, ""
    try:
        outcome = await _as_often_as_needed(trial, case)
    except Exception as error:
        wrong = f"{type(error).__name__}: {error} (logs: {trial.stack.directory})"
    count, trial.count = trial.count, Count()
    line = Line(case, outcome, wrong, count)
    notes.add(line)
    print(told(line), flush=True)
    if wrong:
        raise _Failed


async def _as_often_as_needed(trial: Trial, case: Case) -> Outcome:
    """Which replica a call comes to, and so which of two steps is first, is the gateway's choice."""
    for _ in range(TRIES - 1):
        with suppress(NotReached):
            return await trial.run(case)
    return await trial.run(case)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=sorted(PARTS), default="all")
    parser.add_argument("--only", default="", help="cases whose description has all these words")
    parser.add_argument("--stacks", type=int, default=3)
    parser.add_argument("--notes", type=Path, help="keep what came of each case here, and go on from that")
    parser.add_argument("--backwards", action="store_true", help="help another process on the same notes")
    parser.add_argument("--write", type=Path, help="write the result as a page")
    options = parser.parse_args()
    there = programs()
    cases = chosen(PARTS[options.part](there), options.only)
    if not cases:
        sys.exit(f"no case has these words: {options.only}")
    begun = time.monotonic()
    notes = Notes(cases[::-1] if options.backwards else cases, options.notes)
    asyncio.run(run(notes, options.stacks))
    lines = notes.lines()
    for text in (numbers(lines), errors(lines), *takeovers(lines)):
        print(text)
    print(f"{time.monotonic() - begun:.0f} s on {options.stacks} stacks")
    if options.write:
        options.write.write_text(markdown(lines, there), "utf-8")
    sys.exit(any(line.outcome is None for line in lines))


if __name__ == "__main__":
    main()
