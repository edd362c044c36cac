"""The matrix of faults: `python -m tests.faults.matrix`.

Several stacks run at once, each with one case after the other; one on which something went wrong is kept
for a look and replaced by a new one.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import deque
from pathlib import Path

from tests.faults.cases import PARTS, Case, chosen
from tests.faults.report import Line, errors, markdown, numbers, takeovers, told
from tests.faults.stack import programs
from tests.faults.trial import Count, Trial


async def run(cases: list[Case], stacks: int, count: Count) -> list[Line]:
    """In the order of the cases. The undisturbed sessions that the others are compared with count, too."""
    waiting = deque(cases)
    lines: dict[Case, Line] = {}

    async def work() -> None:
        while waiting:
            await _on_one_stack(waiting, lines, count)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(stacks, len(cases))):
            group.create_task(work())
    return [lines[case] for case in cases]


async def _on_one_stack(waiting: deque[Case], lines: dict[Case, Line], count: Count) -> None:
    """Until there are no more cases, or one fails."""
    trial = Trial(count=count)
    try:
        async with trial:
            while waiting:
                case = waiting.popleft()
                try:
                    lines[case] = Line(case, await trial.run(case))
                except Exception as error:
                    where = f"logs: {trial.stack.directory}"
                    lines[case] = Line(case, None, f"{type(error).__name__}: {error} ({where})")
                    raise
                finally:
                    if case in lines:
                        print(told(lines[case]), flush=True)
    except Exception as error:
        if not any(
            line.outcome is None and str(trial.stack.directory) in line.error for line in lines.values()
        ):
            raise RuntimeError(f"the stack did not come up; logs: {trial.stack.directory}") from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=sorted(PARTS), default="all")
    parser.add_argument("--only", default="", help="cases whose description has all these words")
    parser.add_argument("--stacks", type=int, default=3)
    parser.add_argument("--write", type=Path, help="write the result as a page")
    options = parser.parse_args()
    there = programs()
    cases = chosen(PARTS[options.part](there), options.only)
    if not cases:
        sys.exit(f"no case has these words: {options.only}")
    begun = time.monotonic()
    count = Count()
    lines = asyncio.run(run(cases, options.stacks, count))
    for text in (numbers(lines, count), errors(lines), *takeovers(lines)):
        print(text)
    print(f"{time.monotonic() - begun:.0f} s on {options.stacks} stacks")
    if options.write:
        options.write.write_text(markdown(lines, count, there), "utf-8")
    sys.exit(any(line.outcome is None for line in lines))


if __name__ == "__main__":
    main()
