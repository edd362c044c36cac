"""Bins and the tail on disk against fractions.Fraction."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from combiner.aggregation.bins import TOP, leading, pieces
from combiner.aggregation.tail import Tail
from hypothesis import example, given, settings
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


def test_bins_hand_up_before_they_could_round(tmp_path: Path) -> None:
    """Carries run through many bins when every second deposit hands up."""
    tail = Tail(tmp_path, block_elements=8, safe_deposits=2)
    rng = np.random.default_rng(5)
    expected = [Fraction()] * 8
    for _ in range(600):
        values = np.ldexp(rng.normal(size=8), rng.integers(-60, 60, 8))
        expected = [total + Fraction(value) for total, value in zip(expected, values.tolist(), strict=True)]
        tail.add(0, values)
    parts = tail.read(0, 8)
    sums = [sum((Fraction(float(part[index])) for part in parts), Fraction()) for index in range(8)]
    tail.close()
    assert sums == expected


def test_bins_do_not_overflow(tmp_path: Path) -> None:
    """So many of the largest pieces that their sum needs more than 53 bits."""
    tail = Tail(tmp_path, block_elements=1)
    largest = (2.0**39 - 1.0) * 2.0**6  # the unit of bin 27
    for _ in range(20_001):
        tail.add(0, np.array([largest]))
    parts = tail.read(0, 1)
    tail.close()
    assert sum(Fraction(part[0].item()) for part in parts) == 20_001 * Fraction(largest)


def test_the_tail_is_bounded_by_the_range_of_doubles(tmp_path: Path) -> None:
    tail = Tail(tmp_path, block_elements=4)
    rng = np.random.default_rng(6)
    for _ in range(2000):
        tail.add(0, np.ldexp(rng.normal(size=4), rng.integers(-1074, 1000, 4)))
    assert tail.nbytes <= (TOP + 1) * 4 * 8
    tail.close()


def test_numbers_that_cross_blocks_land_in_both(tmp_path: Path) -> None:
    tail = Tail(tmp_path, block_elements=4)
    tail.add(2, np.arange(1.0, 6.0))
    assert [sum(part[0] for part in tail.read(at, 1)) for at in range(8)] == [0, 0, 1, 2, 3, 4, 5, 0]
    assert tail.reaches(0)
    assert tail.reaches(4)
    assert not tail.reaches(8)
    tail.close()


def test_no_file_without_a_tail(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "missing", block_elements=4)
    tail.add(0, np.zeros(4))
    assert tail.read(0, 4) == []
    tail.close()
    tail.close()


def test_a_scratch_directory_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Tail(tmp_path / "missing", block_elements=4).add(0, np.ones(4))
