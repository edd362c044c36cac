"""Bins and expansions on disk against fractions.Fraction."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from combiner.aggregation import expansion
from combiner.aggregation.bins import TOP, leading, pieces
from combiner.aggregation.blockfile import BlockFile
from combiner.aggregation.expansion import MAX_LEVELS, Expansions, Head
from combiner.aggregation.twosum import Doubles, two_sum
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

finite = st.floats(min_value=-(2.0**1010), max_value=2.0**1010, allow_nan=False)
columns = st.integers(1, 8).flatmap(
    lambda size: st.lists(st.lists(finite, min_size=size, max_size=size), min_size=3, max_size=10)
)

# Few digits at distances around 40, 53 and 106 bits: where one number ends and the next begins.
gaps = st.sampled_from(
    [0, 1, 2, 38, 39, 40, 41, 51, 52, 53, 54, 55, 80, 104, 105, 106, 107, 108, 120, 158, 160, 161]
)
digits = st.builds(lambda gap, digit: digit * 2.0**-gap, gaps, st.sampled_from([-3, -2, -1, 1, 2, 3]))
crafted = st.lists(digits.map(lambda digit: [digit]), min_size=3, max_size=8)


@given(values=st.lists(finite, min_size=1, max_size=8))
def test_pieces_add_up_and_fit_their_bins(values: list[float]) -> None:
    sums = [Fraction()] * len(values)
    for index, piece in pieces(np.array(values), np.empty(len(values))):
        unit = Fraction(2) ** (40 * index - 1074)
        assert 0 <= index <= TOP
        for position, number in enumerate(piece.tolist()):
            digits = Fraction(number) / unit
            assert digits.denominator == 1
            assert abs(digits) <= 2 ** (39 if index < TOP else 46)
            sums[position] += Fraction(number)
    assert sums == [Fraction(value) for value in values]


@settings(deadline=None, max_examples=400)
@given(columns=st.one_of(columns, crafted))
@example(columns=[[1.0], [-(2.0**-54)], [-3 * 2.0**-107], [-(2.0**-106)]])
@example(columns=[[0.5], [2.0**-52], [2.0**-54], [2.0**-107], [3 * 2.0**-105]])
def test_leading_is_the_exact_sum_to_106_bits(columns: list[list[float]]) -> None:
    parts = [np.array(column) for column in columns]
    high, low, rest = leading(parts)
    for index in range(high.size):
        exact = sum((Fraction(float(part[index])) for part in parts), Fraction())
        left = exact - Fraction(high[index].item()) - Fraction(low[index].item())
        assert np.sign(rest[index]) == (left > 0) - (left < 0)
        assert abs(left) < Fraction(float(np.spacing(low[index])).__abs__()) or left == 0
        assert abs(low[index]) <= abs(np.spacing(high[index])) * 0.5 * (1 + 2.0**-50)


def exact(parts: list[Doubles], index: int) -> Fraction:
    return sum((Fraction(float(part[index])) for part in parts), Fraction())


class Sums:
    """Expansions with their first two numbers, as an ExactSum has them."""

    def __init__(self, scratch: Path, elements: int, most_blocks: int = 0) -> None:
        self.file = BlockFile(scratch, elements)
        self.longer = Expansions(self.file, elements, most_blocks)
        self.heads: dict[int, tuple[Doubles, Doubles]] = {}
        self._elements = elements

    def add(self, block: int, column: list[float]) -> None:
        head = self.heads.setdefault(block, (np.zeros(self._elements), np.zeros(self._elements)))
        term = np.array(column)
        for number in head:
            number[:], term = two_sum(number, term)
        if term.any():
            self.longer.add(block, 0, head, term)

    def read(self, block: int) -> list[Fraction]:
        parts = [*self.heads[block], *self.longer.read(block, 0, self._elements)]
        assert len(parts) <= 2 + MAX_LEVELS
        return [exact(parts, index) for index in range(self._elements)]


expansion_columns = st.integers(1, 6).flatmap(
    lambda size: st.lists(st.lists(finite, min_size=size, max_size=size), min_size=3, max_size=14)
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(columns=expansion_columns)
def test_an_expansion_is_exact_at_every_moment(columns: list[list[float]], tmp_path: Path) -> None:
    sums = Sums(tmp_path, len(columns[0]))
    total = [Fraction()] * len(columns[0])
    for column in columns:
        sums.add(0, column)
        total = [a + Fraction(b) for a, b in zip(total, column, strict=True)]
        assert sums.read(0) == total
    assert not sums.longer.dropped
    sums.file.close()


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(columns=st.lists(st.lists(finite, min_size=2, max_size=2), min_size=60, max_size=90))
def test_no_expansion_is_longer_than_the_range_of_doubles(columns: list[list[float]], tmp_path: Path) -> None:
    """Also if no two of its numbers are ever moved together before it has its greatest length."""
    sums = Sums(tmp_path, 2)
    total = [Fraction()] * 2
    with pytest.MonkeyPatch.context() as monkeypatch:
        squeeze = Expansions._squeeze

        def late(longer: Expansions, levels: list[int], within: int, head: Head, term: Doubles) -> Doubles:
            return squeeze(longer, levels, within, head, term) if len(levels) == MAX_LEVELS else term

        monkeypatch.setattr(Expansions, "_squeeze", late)
        monkeypatch.setattr(expansion, "two_sum", lambda a, b: (a, b))
        for column in columns:
            sums.add(0, column)
            total = [a + Fraction(b) for a, b in zip(total, column, strict=True)]
    assert sums.read(0) == total
    sums.file.close()


def test_for_want_of_room_the_last_block_is_dropped_and_the_first_one_stays(tmp_path: Path) -> None:
    sums = Sums(tmp_path, 4)
    rng = np.random.default_rng(6)
    expected = [Fraction()] * 4
    for _ in range(300):
        for block in (7, 5, 3):
            values = np.ldexp(rng.normal(size=4), rng.integers(-1074, 1000, 4))
            sums.add(block, values.tolist())
            if block == 3:
                expected = [a + Fraction(b) for a, b in zip(expected, values.tolist(), strict=True)]
    assert sums.longer.dropped == {5, 7}
    assert sums.longer.blocks == [3]
    assert sums.file.nbytes <= MAX_LEVELS * 4 * 8
    assert sums.read(3) == expected
    sums.longer.remove(3)
    assert sums.file.used == 0
    sums.file.close()


def test_freed_blocks_are_zeros_again(tmp_path: Path) -> None:
    file = BlockFile(tmp_path, 4)
    first = file.allocate(1)
    assert first is not None
    assert file.allocate(1) is None
    file.store(first, 0, np.ones(4))
    file.free(first)
    again = file.allocate(1)
    assert again is not None
    assert file.load(again, 0, np.ones(4)).tolist() == [0, 0, 0, 0]
    assert file.nbytes == 32
    file.close()
    file.close()


def test_values_that_fit_in_few_numbers_take_no_more(tmp_path: Path) -> None:
    """In any order, since what was pushed apart is moved together."""
    values = [1.5 * 2.0**exponent for exponent in (900, 300, -300, -900)] + [2.0**900] * 6
    for seed in range(40):
        sums = Sums(tmp_path, 1)
        for value in np.random.default_rng(seed).permutation(values):
            sums.add(0, [value])
        assert sums.file.used <= 2
        sums.file.close()


def test_no_file_before_something_is_kept(tmp_path: Path) -> None:
    sums = Sums(tmp_path / "missing", 1)
    sums.add(0, [1.0])
    assert sums.read(0) == [1]


def test_a_scratch_directory_that_is_gone_is_an_error(tmp_path: Path) -> None:
    sums = Sums(tmp_path / "missing", 1)
    sums.add(0, [1.0])
    sums.add(0, [2.0**-100])
    with pytest.raises(FileNotFoundError):
        sums.add(0, [2.0**-200])
