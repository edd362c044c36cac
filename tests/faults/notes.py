"""What a run of the matrix came to so far, in a file: one JSON object a case.

A run that was stopped goes on from it, and a second process may help from the other end of the cases.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.cases import Case, describe
from tests.faults.trial import Count, Outcome


@dataclass(frozen=True)
class Line:
    """One case: what came of it, or what was wrong. `count` is of its session, and of the undisturbed one if
    it was the first on its stack.
    """

    case: Case
    outcome: Outcome | None
    error: str = ""
    count: Count = field(default_factory=Count)


class Notes:
    """Lines by their cases; kept in `file` if there is one."""

    def __init__(self, cases: Sequence[Case], file: Path | None) -> None:
        if len({describe(case) for case in cases}) < len(cases):
            raise ValueError("two cases have one name")
        self._cases = cases
        self._file = file
        self._lines: dict[str, Line] = {}

    def add(self, line: Line) -> None:
        self._lines[describe(line.case)] = line
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_words(line)) + "\n")

    def lines(self) -> list[Line]:
        """Of all cases that were tried, in the order of the cases."""
        found = self._read()
        return [found[name] for case in self._cases if (name := describe(case)) in found]

    def missing(self) -> Iterator[Case]:
        """Cases that nobody has tried yet; looks again before each."""
        for case in self._cases:
            if describe(case) not in self._read():
                yield case

    def _read(self) -> dict[str, Line]:
        if self._file is None or not self._file.exists():
            return self._lines
        by_name = {describe(case): case for case in self._cases}
        found = [json.loads(row) for row in self._file.read_text("utf-8").splitlines()]
        return {row["case"]: _line(by_name[row["case"]], row) for row in found if row["case"] in by_name}


def _words(line: Line) -> dict[str, Any]:
    outcome = dataclasses.asdict(line.outcome) if line.outcome else None
    count = dataclasses.asdict(line.count)
    return {"case": describe(line.case), "outcome": outcome, "error": line.error, "count": count}


def _line(case: Case, row: dict[str, Any]) -> Line:
    outcome = Outcome(**row["outcome"]) if row["outcome"] else None
    return Line(case, outcome, row["error"], Count(**row["count"]))
