"""Notes of a run of the fault matrix, and what the aggregates show."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.cases import PARTS, Programs
from tests.faults.fleet import expected_shares, times_in
from tests.faults.notes import Line, Notes
from tests.faults.trial import Count, Outcome

EVERYTHING: Programs = frozenset({"store", "gateway", "modelstore"})
CASES = PARTS["core"](EVERYTHING)[:3]


@pytest.mark.parametrize("programs", [EVERYTHING, frozenset[str]()])
def test_each_case_has_a_name_of_its_own(programs: Programs) -> None:
    Notes(PARTS["all"](programs), None)


def test_a_run_goes_on_where_another_process_stopped(tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    good = Line(CASES[1], Outcome(2.5, 0.25, 1), "", Count(2, 16, 0, 0))
    bad = Line(CASES[0], None, "AssertionError: lost", Count(1, 7, 1, 0))
    first = Notes(CASES, file)
    for line in (good, bad):
        first.add(line)
    second = Notes(CASES, file)
    assert second.lines() == [bad, good]
    assert list(second.missing()) == [CASES[2]]


def test_what_others_note_meanwhile_is_not_tried_again(tmp_path: Path) -> None:
    ours, theirs = Notes(CASES, tmp_path / "notes"), Notes(CASES[::-1], tmp_path / "notes")
    missing = ours.missing()
    assert next(missing) == CASES[0]
    theirs.add(Line(CASES[1], Outcome(1, None, 0)))
    assert next(missing) == CASES[2]


def test_the_aggregate_shows_how_often_each_client_is_in_it() -> None:
    shares = expected_shares()
    assert times_in(shares) == [1] * len(shares)
    shares[0], shares[3] = 0.0, 2 * shares[3]
    total = sum(shares)
    assert times_in([share / total for share in shares]) == [0, 1, 1, 2, 1, 1, 1, 1]
    assert times_in([0.0] * 8) == [0] * 8


def test_lost_and_doubled_updates_are_counted() -> None:
    count = Count()
    count.add([1] * 8)
    count.add([0, 1, 1, 3, 1, 1, 1, 1])
    assert count == Count(sessions=2, found=17, lost=1, doubled=2)
    assert count + count == Count(sessions=4, found=34, lost=2, doubled=4)
