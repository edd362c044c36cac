"""The exact sum against fractions.Fraction."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from combiner.aggregation.exact import BLOCK_ELEMENTS, MAX_WEIGHT, ExactSum
from combiner.aggregation.expansion import MAX_LEVELS, Expansions
from combiner.aggregation.rounding import MAX_TOTAL
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.unit.exact_kit import rounded

FLOATS = [np.dtype(code) for code in ("f2", "f4", "f8")]
INTEGERS = [np.dtype(code) for code in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")]
SCALES = [2.0**90, -(2.0**90), 1.0, 2.0**-24, 2.0**-70]
Term = tuple[NDArray[Any], int]


def examples(count: int) -> settings:
    return settings(
        max_examples=count, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )


def exact_mean(terms: Sequence[Term], index: int) -> Fraction:
    total = sum(weight for _, weight in terms)
    return sum((Fraction(values[index].item()) * weight for values, weight in terms), Fraction()) / total


def mean_of(terms: Sequence[Term], dtype: np.dtype[Any], scratch: Path) -> NDArray[Any]:
    elements = terms[0][0].size
    total = ExactSum(elements, scratch, max_scratch=0)
    try:
        for values, weight in terms:
            total.add(0, values, weight)
        return total.mean(0, elements, sum(weight for _, weight in terms), dtype)
    finally:
        total.close()


def mean_of_dropped(terms: Sequence[Term], dtype: np.dtype[Any], scratch: Path) -> NDArray[Any]:
    """With no room for a third number of any element at first: all that needs one is summed again."""
    elements = terms[0][0].size
    weight_of_all = sum(weight for _, weight in terms)
    total = ExactSum(elements, scratch, max_scratch=0)
    try:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(Expansions, "add", lambda longer, block, *_: longer.dropped.add(block))
            for values, weight in terms:
                total.add(0, values, weight)
        while total.dropped:
            total.begin_pass([(0, elements, dtype)], weight_of_all)
            for values, weight in reversed(terms):
                total.add_again(0, values, weight)
        # what takes room is settled, and found again
        total.begin_pass([(0, elements, dtype)], weight_of_all)
        return total.mean(0, elements, weight_of_all, dtype)
    finally:
        total.close()


def assert_exact(terms: Sequence[Term], dtype: np.dtype[Any], scratch: Path) -> NDArray[Any]:
    result = mean_of(terms, dtype, scratch)
    expected = [rounded(exact_mean(terms, index), dtype) for index in range(result.size)]
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, np.array(expected, dtype))
    assert result.tobytes() == np.array(expected, dtype).tobytes(), "a zero has the wrong sign"
    return result


def numbers(dtype: np.dtype[Any]) -> st.SearchStrategy[Any]:
    if dtype.kind == "b":
        return st.booleans()
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        low, high = int(limits.min), int(limits.max)
        near_limits = st.sampled_from([low, low + 1, high - 1, high, high // 2, high // 2 + 1])
        return st.one_of(st.integers(low, high), st.integers(max(low, -4), 4), near_limits)
    width, limit = dtype.itemsize * 8, min(float(np.finfo(dtype).max), 2.0**960)
    plain = st.floats(min_value=-limit, max_value=limit, width=width, allow_nan=False)  # type: ignore[call-overload]
    exponents = st.integers(
        int(np.finfo(dtype).minexp) - int(np.finfo(dtype).nmant), np.finfo(dtype).maxexp - 1
    )
    powers = st.builds(
        lambda sign, exponent: sign * 2.0 ** min(exponent, 959), st.sampled_from([1, -1]), exponents
    )
    neighbours = st.sampled_from(
        [1.0, -1.0, 1.0 + float(np.finfo(dtype).eps), 1.0 - float(np.finfo(dtype).epsneg)]
    )
    return st.one_of(plain, powers, neighbours, st.just(0.0))


weights = st.one_of(
    st.integers(1, MAX_WEIGHT),
    st.integers(1, 8),
    st.sampled_from([MAX_WEIGHT, MAX_WEIGHT - 1, (1 << 26) - 1, (1 << 26) + 1, 1 << 28, (1 << 15) + 1]),
)


@st.composite
def updates(draw: st.DrawFn, elements: int = 4) -> list[Term]:
    """Updates of one array in any dtypes, negated copies among them, so that sums cancel to what is small."""
    terms: list[Term] = []
    for _ in range(draw(st.integers(1, 6))):
        dtype = draw(st.sampled_from(FLOATS + INTEGERS))
        column = draw(st.lists(numbers(dtype), min_size=elements, max_size=elements))
        weight = draw(weights)
        terms.append((np.array(column, dtype), weight))
        if dtype.kind == "f" and draw(st.booleans()):
            terms.append((-terms[-1][0], weight))
    return terms


@examples(500)
@given(terms=updates(), dtype=st.sampled_from(FLOATS + INTEGERS))
def test_mean_is_the_fraction_rounded_once(terms: list[Term], dtype: np.dtype[Any], tmp_path: Path) -> None:
    assert_exact(terms, dtype, tmp_path)


@examples(300)
@given(terms=updates(), dtype=st.sampled_from(FLOATS + INTEGERS))
def test_what_is_summed_again_is_the_fraction_rounded_once(
    terms: list[Term], dtype: np.dtype[Any], tmp_path: Path
) -> None:
    expected = [rounded(exact_mean(terms, index), dtype) for index in range(terms[0][0].size)]
    result = mean_of_dropped(terms, dtype, tmp_path)
    assert result.tobytes() == np.array(expected, dtype).tobytes()


@examples(60)
@given(terms=updates(), dtype=st.sampled_from(FLOATS), seed=st.integers(0, 1000))
def test_bytes_do_not_depend_on_the_order(
    terms: list[Term], dtype: np.dtype[Any], seed: int, tmp_path: Path
) -> None:
    shuffled = random.Random(seed).sample(terms, len(terms))
    assert mean_of(terms, dtype, tmp_path).tobytes() == mean_of(shuffled, dtype, tmp_path).tobytes()


@pytest.mark.parametrize("parent", FLOATS, ids=str)
@pytest.mark.parametrize("update", ["f4", "f8"])
def test_three_scales_in_all_orders(parent: np.dtype[Any], update: str, tmp_path: Path) -> None:
    subnormal = float(np.finfo(update).smallest_subnormal)
    terms = [
        (np.array([scale, scale * 3, subnormal], update), weight)
        for scale, weight in zip(SCALES, (7, 7, 3, 1, 5), strict=True)
    ]
    results = {assert_exact(order, parent, tmp_path).tobytes() for order in itertools.permutations(terms)}
    assert len(results) == 1


@pytest.mark.parametrize("left", [0.0, 1e-45, -1e-45])
def test_zeros_have_the_sign_of_the_sum_in_all_orders(left: float, tmp_path: Path) -> None:
    values = [2.0**90, -(2.0**90), 2.0**-20, -(2.0**-20), 3e-45, -3e-45]
    terms = [(np.array([value], "f4"), 1) for value in values]
    for order in itertools.permutations(terms):
        result = mean_of([*order, (np.array([left], "f4"), 1)], np.dtype("f4"), tmp_path)
        assert result.tobytes() == np.array([np.copysign(0.0, left)], "f4").tobytes()


@examples(300)
@given(
    quotient=st.integers(1 << 53, (1 << 54) - 1),
    scale=st.integers(-800, 800),
    total=st.one_of(st.integers(16, MAX_WEIGHT * 2), st.just((1 << 29) + 3)),
    nudge=st.sampled_from([0, 1, -1]),
    depth=st.integers(54, 300),
)
@example(quotient=(1 << 54) - 1, scale=0, total=(1 << 30) - 3, nudge=1, depth=104)
def test_doubles_next_to_a_tie(
    quotient: int, scale: int, total: int, nudge: int, depth: int, tmp_path: Path
) -> None:
    """Sums that are a 54-bit number times the total, or differ from it in the last digit that there is."""
    target = Fraction(quotient * total) * Fraction(2) ** scale
    rest = target + nudge * Fraction(2) ** max(scale - depth, -1074)
    terms: list[Term] = []
    while rest and len(terms) < 12:
        value = rest.numerator / rest.denominator
        terms.append((np.array([value]), 1))
        rest -= Fraction(value)
    filler = total - len(terms)
    assert not rest
    terms += [(np.array([0.0]), weight) for weight in _cut(filler)]
    assert_exact(terms, np.dtype("f8"), tmp_path)


@examples(200)
@given(
    odd=st.integers(1 << 50, (1 << 52) - 1).map(lambda quotient: quotient | 1),
    total=st.integers(1, 1 << 28).map(lambda half: 2 * half),
    nudge=st.sampled_from([0, 1, -1]),
)
@example(odd=(1 << 52) - 1, total=6, nudge=0)
@example(odd=(1 << 52) - 3, total=6, nudge=0)
def test_subnormal_ties(odd: int, total: int, nudge: int, tmp_path: Path) -> None:
    """Means that lie halfway between two subnormal numbers, or one unit of the sum beside it."""
    units = (2 * odd + 1) * (total // 2) + nudge
    high, low = units >> 40 << 40, units & ((1 << 40) - 1)
    sums = ExactSum(1, tmp_path, 0)
    for part in (high, low):
        sums.add(0, np.array([float(Fraction(part, 1 << 1074))]), 1)
    expected = np.float64(units / (total << 1074))
    assert sums.mean(0, 1, total, np.dtype("f8"))[0] == expected


@pytest.mark.parametrize(
    ("high", "low", "total"),
    [
        ("0x1.0555c33ca5c76p+65", "0x1.42751bdf80896p+11", 1131913621442),
        ("0x1.02d7702d8570dp+59", "-0x1.9b7cb1415cf0cp+5", 17604241161),
        ("0x1.05d5314bf657bp+67", "-0x1.c2a5d5f57d458p+13", 4498260877356),
        ("0x1.01ddb497cddcep+67", "-0x1.c58e18962c600p+13", 4431027976575),
    ],
)
def test_quotients_that_one_division_misses(high: str, low: str, total: int, tmp_path: Path) -> None:
    """Found by search: high / total is more than one unit in the last place away, across a float32 tie."""
    sums = ExactSum(1, tmp_path, 0)
    for part in (high, low):
        sums.add(0, np.array([float.fromhex(part)]), 1)
    exact = (Fraction(float.fromhex(high)) + Fraction(float.fromhex(low))) / total
    assert sums.mean(0, 1, total, np.dtype("f4"))[0] == rounded(exact, np.dtype("f4"))


def _cut(weight: int) -> list[int]:
    return [*([MAX_WEIGHT] * (weight // MAX_WEIGHT)), *([weight % MAX_WEIGHT] if weight % MAX_WEIGHT else [])]


@pytest.mark.parametrize("dtype", [np.dtype("f2"), np.dtype("f4"), np.dtype("f8")], ids=str)
def test_ties_go_to_even(dtype: np.dtype[Any], tmp_path: Path) -> None:
    eps = float(np.finfo(dtype).eps)
    ones = np.array([1.0, 1.0 + eps, -1.0, 0.0], dtype)
    above = np.array([1.0 + eps, 1.0 + 2 * eps, -1.0 - eps, float(np.finfo(dtype).smallest_subnormal)], dtype)
    result = assert_exact([(ones, 1), (above, 1)], dtype, tmp_path)
    assert result.tolist() == [1.0, 1.0 + 2 * eps, -1.0, 0.0]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_round_half_to_even_and_saturate(dtype: np.dtype[Any], tmp_path: Path) -> None:
    values = np.array([1e30, -1e30, 0.5, 1.5, 2.5, -0.5, 254.5, 2.0**63, 2.0**64, -(2.0**63)])
    assert_exact([(values, 1)], dtype, tmp_path)
    assert_exact([(values, MAX_WEIGHT), (values, 1)], dtype, tmp_path)


def test_integers_beyond_doubles_keep_their_last_digit(tmp_path: Path) -> None:
    signed = np.array([2**63 - 1, -(2**63), 2**62 + 1, 2**53 + 1, -(2**53) - 1], "i8")
    unsigned = np.array([2**64 - 1, 2**64 - 2, 2**63 + 1, 2**53 + 1, 1], "u8")
    for values in (signed, unsigned):
        result = mean_of([(values, 3), (values, MAX_WEIGHT), (values, 1)], values.dtype, tmp_path)
        np.testing.assert_array_equal(result, values)


def test_means_beyond_the_parents_dtype_become_its_largest_value(tmp_path: Path) -> None:
    values = np.array([1e300, -1e300, 65519.0, 65520.0])
    half = mean_of([(values, 1)], np.dtype("f2"), tmp_path)
    assert half.tolist() == [65504.0, -65504.0, 65504.0, 65504.0]
    single = mean_of([(values, 1)], np.dtype("f4"), tmp_path)
    assert single.tolist()[:2] == [float(np.finfo("f4").max), float(np.finfo("f4").min)]


def test_the_largest_terms_do_not_overflow(tmp_path: Path) -> None:
    values = np.array([2.0**960, -(2.0**960), 2.0**960])
    assert_exact([(values, MAX_WEIGHT)] * 8, np.dtype("f8"), tmp_path)
    assert_exact(
        [(values, MAX_WEIGHT), (np.array([-(2.0**960), 2.0**960, 2.0**-1074]), MAX_WEIGHT)],
        np.dtype("f8"),
        tmp_path,
    )


def test_totals_at_the_limit_decide_ties(tmp_path: Path) -> None:
    """Beyond 2**50 examples the sum's 106 bits would no longer separate all rounding cases; up to there
    they do.
    """
    total = ExactSum(3, tmp_path, 0)
    base = np.array([1.0 + 2.0**-52, 1.0, 3.0])
    total.add(0, base, MAX_WEIGHT)
    small = np.array([2.0**-200, -(2.0**-1074), 2.0**-60])
    total.add(0, small, 1)
    for divisor in (MAX_TOTAL, MAX_TOTAL - 1, (1 << 49) + 1):
        sums = [
            Fraction(a) * MAX_WEIGHT + Fraction(b) for a, b in zip(base.tolist(), small.tolist(), strict=True)
        ]
        expected = [rounded(value / divisor, np.dtype("f8")) for value in sums]
        assert total.mean(0, 3, divisor, np.dtype("f8")).tolist() == expected


def test_scratch_is_used_only_where_it_is_needed(tmp_path: Path) -> None:
    elements = 3 * BLOCK_ELEMENTS
    total = ExactSum(elements, tmp_path, 0)
    plain = np.random.default_rng(1).normal(size=elements).astype("f4")
    for weight in range(1, 31):
        total.add(0, plain, weight)
    assert total.scratch_bytes == 0
    wild = [plain.copy(), plain.copy()]
    wild[0][BLOCK_ELEMENTS], wild[1][BLOCK_ELEMENTS] = 1e-20, 1e-44
    for values in wild:
        total.add(0, values, 3)
    assert 0 < total.scratch_bytes <= 2 * BLOCK_ELEMENTS * 8
    window = slice(BLOCK_ELEMENTS, BLOCK_ELEMENTS + 5)
    terms: list[Term] = [(plain[window], 465), (wild[0][window], 3), (wild[1][window], 3)]
    expected = [rounded(exact_mean(terms, index), np.dtype("f8")) for index in range(5)]
    assert total.mean(BLOCK_ELEMENTS, 5, 471, np.dtype("f8")).tolist() == expected
    total.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("start", [0, 5, BLOCK_ELEMENTS - 2, BLOCK_ELEMENTS, 2 * BLOCK_ELEMENTS - 3])
def test_runs_may_start_anywhere(start: int, tmp_path: Path) -> None:
    total = ExactSum(3 * BLOCK_ELEMENTS, tmp_path, 0)
    rng = np.random.default_rng(start)
    count = BLOCK_ELEMENTS // 2 + 7
    first = np.ldexp(rng.normal(size=count), rng.integers(-400, 400, count))
    second = np.ldexp(rng.normal(size=count), rng.integers(-400, 400, count))
    for values, weight in ((first, 3), (second, 2), (-first, 3), (first[::-1].copy(), 1)):
        total.add(start, values, weight)
    terms: list[Term] = [(second, 2), (first[::-1].copy(), 1), (np.zeros(count), 6)]
    result = total.mean(start, count, 9, np.dtype("f8"))
    for index in [*range(10), *rng.integers(0, count, 300).tolist(), *range(count - 10, count)]:
        assert result[index] == rounded(exact_mean(terms, index), np.dtype("f8"))
    assert not total.mean(0, start, 9, np.dtype("f8")).any()
    assert not total.mean(start + count, 50, 9, np.dtype("f8")).any()


def spread(rng: np.random.Generator, elements: int, low: int, high: int) -> NDArray[Any]:
    return np.ldexp(rng.normal(size=elements), rng.integers(low, high, elements))


def test_scratch_is_bounded_whatever_the_values_are(tmp_path: Path) -> None:
    """Blocks for which there is no room are summed again, the last ones in the last pass."""
    elements = 40 * BLOCK_ELEMENTS + 5
    rng = np.random.default_rng(3)
    terms: list[Term] = []
    for _ in range(4):
        values = spread(rng, elements, -1000, 900)
        terms += [(values, 5), (-values, 5)]
    terms = [*terms[::2], *terms[1::2], (rng.normal(size=elements), 1)]
    total = ExactSum(elements, tmp_path, max_scratch=0)
    for values, weight in terms:
        total.add(0, values, weight)
    examples_ = sum(weight for _, weight in terms)
    with pytest.raises(RuntimeError, match="blocks of the sum have to be summed again"):
        total.mean(0, 1, examples_, np.dtype("f8"))
    runs = [(0, 100, np.dtype("i8")), (100, elements, np.dtype("f8"))]
    left = [total.dropped]
    while total.dropped:
        total.begin_pass(runs, examples_)
        for values, weight in terms:
            total.add_again(0, values, weight)
        left.append(total.dropped)
        assert left[-1] < left[-2]
        assert total.scratch_bytes <= MAX_LEVELS * BLOCK_ELEMENTS * 8
    assert len(left) > 2
    plain = [(terms[-1][0], 1), (np.zeros(elements), examples_ - 1)]
    assert total.mean(0, 100, examples_, np.dtype("i8")).tolist() == [0] * 100
    for index in [100, elements - 1, *rng.integers(100, elements, 300).tolist()]:
        mean = total.mean(index, 1, examples_, np.dtype("f8"))[0]
        assert mean == rounded(exact_mean(plain, index), np.dtype("f8"))
    total.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["i8", "u8"])
def test_integers_that_are_summed_again_keep_their_last_digit(dtype: str, tmp_path: Path) -> None:
    values = np.array([2**63 - 1, 2**62 + 1, 2**53 + 1], dtype)
    wild = np.array([1e200, 1e-200, 1.0])
    terms: list[Term] = [(values, 3), (wild, 1), (-wild, 1), (values, 1), (values, 1)]
    expected = [rounded(exact_mean(terms, index), np.dtype(dtype)) for index in range(3)]
    assert mean_of_dropped(terms, np.dtype(dtype), tmp_path).tolist() == expected


@pytest.mark.parametrize("weight", [0, -1, MAX_WEIGHT + 1])
def test_weights_out_of_range_are_refused(weight: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allowed are 1 to"):
        ExactSum(1, tmp_path, 0).add(0, np.ones(1), weight)


@pytest.mark.parametrize("total", [0, MAX_TOTAL + 1])
def test_totals_out_of_range_are_refused(total: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allowed are 1 to"):
        ExactSum(1, tmp_path, 0).mean(0, 1, total, np.dtype("f8"))
