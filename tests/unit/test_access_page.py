"""docs/access.md says what the table says."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedcombiner.access.page import BEGIN, END, PAGE, tables, with_tables
from fedcombiner.access.table import ENDPOINTS, RPCS

ROOT = Path(__file__).parents[2]


def test_the_page_is_current() -> None:
    page = (ROOT / PAGE).read_text("utf-8")
    assert page == with_tables(page), "run `python -m fedcombiner.access.page`"


def test_every_row_is_on_the_page() -> None:
    made = tables()
    fedn = {method.removeprefix("/fedn.") for method in RPCS if method.startswith("/fedn.")}
    others = {method.removeprefix("/") for method in RPCS} - {
        f"{p}.{name}" for p in ("grpc", "fedn") for name in fedn
    }
    endpoints = {row for rows in ENDPOINTS.values() for row in rows}
    assert {"combiner.v1.Jobs/Get", "grpc.health.v1.Health/Check"} < others
    for name in fedn | others | endpoints:
        assert made.count(f"| `{name}` |") == 1


@pytest.mark.parametrize("page", ["", BEGIN, END, END + BEGIN, BEGIN + END + BEGIN + END])
def test_a_page_without_its_marks_is_left_alone(page: str) -> None:
    with pytest.raises(ValueError, match="marks"):
        with_tables(page)
