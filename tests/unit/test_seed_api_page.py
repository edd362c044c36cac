"""docs/api.md is what the docstrings say."""

from __future__ import annotations

from tests.unit.test_seed_api import LINE, LINES
from tools.api_page import PAGE, page


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page(), "run make api, and commit"


def test_every_documented_name_is_on_it() -> None:
    text = PAGE.read_text()
    names = {match["name"].rpartition(".")[2] for line in LINES if (match := LINE.fullmatch(line))}
    assert {name for name in names if name not in text} == set()
