"""FedAvg over checked updates: same bytes in every order, whole or not at all."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from combiner.aggregation import AGGREGATORS, MAX_NUM_EXAMPLES, FedAvg
from combiner.aggregation.expansion import Expansions
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedcombiner.modelstorage.formats import FormatError, ModelSpec, TensorSpec
from fedcombiner.modelstorage.formats.arrays import load_arrays, save_arrays
from fedcombiner.modelstorage.formats.npz import CheckedUpdate, check_update, read_spec, write_model
from tests.unit.exact_kit import rounded

Arrays = dict[str, NDArray[Any]]
Terms = Sequence[tuple[CheckedUpdate, int]]


def spec(**tensors: tuple[str, tuple[int, ...]]) -> ModelSpec:
    return ModelSpec(
        tuple(TensorSpec(name, np.dtype(code), shape) for name, (code, shape) in tensors.items())
    )


@contextmanager
def checked(
    updates: Sequence[tuple[Arrays, int]], parent: ModelSpec, directory: Path
) -> Iterator[list[tuple[CheckedUpdate, int]]]:
    opened = []
    try:
        for index, (arrays, weight) in enumerate(updates):
            path = directory / f"update-{index}.npz"
            save_arrays(path, arrays, compress=index % 2 == 1)
            opened.append((check_update(path, parent, directory), weight))
            path.unlink()
        yield opened
    finally:
        for update, _ in opened:
            update.close()


def aggregate(terms: Terms, parent: ModelSpec, directory: Path) -> bytes:
    aggregator = FedAvg(parent, directory)
    try:
        for update, weight in terms:
            aggregator.fold(update, weight)
        while aggregator.needs_another_pass:
            aggregator.begin_pass()
            for update, weight in terms:
                aggregator.fold_again(update, weight)
            aggregator.end_pass()
        aggregator.write(directory / "aggregate.npz")
        return (directory / "aggregate.npz").read_bytes()
    finally:
        aggregator.close()


def test_the_mean_is_weighted_and_has_the_parents_form(tmp_path: Path) -> None:
    parent = spec(
        w=("f4", (2, 2)), n=("i8", ()), h=("f2", (1,)), d=("f8", (3,)), u=("u1", (2,)), e=("f4", (0, 2))
    )
    updates: list[tuple[Arrays, int]] = [
        (
            {
                "u": np.array([255, 1], "u1"),
                "w": np.array([[1, 2], [3, 4]], "i8"),
                "n": np.array(5, "f8"),
                "h": np.array([1], "f4"),
                "d": np.array([1, 2, 3], "f4"),
                "e": np.zeros((0, 2)),
            },
            1,
        ),
        (
            {
                "w": np.array([[5, 6], [7, 8]], "f4"),
                "n": np.array(8, "i8"),
                "h": np.array([3], "f2"),
                "d": np.array([2, 3, 4], "f8"),
                "u": np.array([255, 2], "u1"),
                "e": np.zeros((0, 2), "f4"),
            },
            3,
        ),
    ]
    with checked(updates, parent, tmp_path) as terms:
        data = aggregate(terms, parent, tmp_path)
    loaded = load_arrays(data)
    assert list(loaded) == ["w", "n", "h", "d", "u", "e"]
    assert [array.dtype.str[1:] for array in loaded.values()] == ["f4", "i8", "f2", "f8", "u1", "f4"]
    assert loaded["w"].tolist() == [[4, 5], [6, 7]]
    assert loaded["n"].tolist() == 7  # 7.25
    assert loaded["h"].tolist() == [2.5]
    assert loaded["d"].tolist() == [1.75, 2.75, 3.75]
    assert loaded["u"].tolist() == [255, 2]  # 1.75
    assert loaded["e"].shape == (0, 2)


def test_one_update_comes_back_as_its_own_bytes(tmp_path: Path) -> None:
    """An update in the parent's form is its own mean, and FedAvg writes it as any model is written."""
    array = np.random.default_rng(0).normal(size=(300, 400)).astype("f4")
    parent = spec(w=("f4", array.shape))
    write_model(tmp_path / "one.npz", parent, [(0, 0, array)])
    with check_update(tmp_path / "one.npz", read_spec(tmp_path / "one.npz"), tmp_path) as update:
        assert aggregate([(update, 123)], parent, tmp_path) == (tmp_path / "one.npz").read_bytes()


def test_thirty_updates_in_a_hundred_orders(tmp_path: Path) -> None:
    elements = 3000
    rng = np.random.default_rng(7)
    parent = spec(w=("f4", (elements,)), d=("f8", (100,)))
    updates: list[tuple[Arrays, int]] = [
        (
            {
                "w": (rng.normal(size=elements) * 2.0 ** rng.integers(-140, 100, elements)).astype("f4"),
                "d": np.ldexp(rng.normal(size=100), rng.integers(-1070, 900, 100)),
            },
            int(rng.integers(1, MAX_NUM_EXAMPLES)),
        )
        for _ in range(30)
    ]
    with checked(updates, parent, tmp_path) as terms:
        orders = [random.Random(seed).sample(terms, len(terms)) for seed in range(100)]
        results = {aggregate(order, parent, tmp_path) for order in orders}
    assert len(results) == 1
    loaded = load_arrays(results.pop())
    total = sum(weight for _, weight in updates)
    for name, sampled in (("w", range(0, elements, 7)), ("d", range(100))):
        for index in sampled:
            exact = (
                sum((Fraction(arrays[name][index].item()) * weight for arrays, weight in updates), Fraction())
                / total
            )
            # One rounding to float64 and one to float32 differ from a single rounding only next to a tie.
            assert loaded[name][index] == loaded[name].dtype.type(exact.numerator / exact.denominator)


def test_large_updates_in_several_orders(tmp_path: Path) -> None:
    elements = 1_000_000
    parent = spec(w=("f4", (1000, 1000)))
    directory = tmp_path
    rng = np.random.default_rng(3)
    base = rng.normal(size=(1000, 1000)).astype("f4")
    updates: list[tuple[Arrays, int]] = [
        ({"w": base + rng.normal(scale=0.01, size=base.shape).astype("f4")}, int(rng.integers(1, 5000)))
        for _ in range(30)
    ]
    with checked([(arrays, weight) for arrays, weight in updates[:30]], parent, directory) as terms:
        results = {aggregate(random.Random(seed).sample(terms, 30), parent, directory) for seed in range(3)}
    assert len(results) == 1
    mean = load_arrays(results.pop())["w"].reshape(-1)
    flat = [(arrays["w"].reshape(-1), weight) for arrays, weight in updates]
    total = sum(weight for _, weight in flat)
    for index in rng.integers(0, elements, 2000).tolist():
        exact = sum((Fraction(values[index].item()) * weight for values, weight in flat), Fraction()) / total
        assert mean[index] == np.float32(exact.numerator / exact.denominator)


def read_as(value: float, dtype: np.dtype[Any]) -> Fraction:
    """The definition: a floating point number of more digits than the parent's is rounded to its dtype."""
    return Fraction(float(dtype.type(value)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    code=st.sampled_from(["f2", "f4", "f8"]),
    columns=st.lists(
        st.lists(st.floats(-(2.0**960), 2.0**960), min_size=3, max_size=3), min_size=1, max_size=6
    ),
    weights=st.lists(st.integers(1, MAX_NUM_EXAMPLES), min_size=6, max_size=6),
)
@example(code="f4", columns=[[1.0, 2.0**-150, 1.0 + 2.0**-24]] * 2, weights=[1] * 6)
def test_values_are_read_as_the_parents_and_the_mean_is_rounded_once(
    code: str, columns: list[list[float]], weights: list[int], tmp_path: Path
) -> None:
    dtype = np.dtype(code)
    parent = spec(w=(code, (3,)))
    largest = min(float(np.finfo(dtype).max), 2.0**960)
    updates: list[tuple[Arrays, int]] = [
        ({"w": np.clip(np.array(column), -largest, largest)}, weight)
        for column, weight in zip(columns, weights, strict=False)
    ]
    with checked(updates, parent, tmp_path) as terms:
        mean = load_arrays(aggregate(terms, parent, tmp_path))["w"]
    total = sum(weight for _, weight in updates)
    for index in range(3):
        values = [read_as(arrays["w"][index].item(), dtype) * weight for arrays, weight in updates]
        assert mean[index] == rounded(sum(values, Fraction()) / total, dtype)


def test_a_value_beyond_the_parents_range_is_refused_and_one_at_its_end_is_not(tmp_path: Path) -> None:
    parent = spec(w=("f4", (2,)))
    largest = float(np.finfo("f4").max)
    with checked([({"w": np.array([largest, -largest])}, 3)], parent, tmp_path) as terms:
        assert load_arrays(aggregate(terms, parent, tmp_path))["w"].tolist() == [largest, -largest]
    above = np.nextafter(largest, np.inf)
    with (
        pytest.raises(FormatError, match=r"too_large: .*at flat index 1, the largest float32 of the parent"),
        checked([({"w": np.array([0.0, -above])}, 1)], parent, tmp_path),
    ):
        pass


def scratch_in_use(directory: Path) -> int:
    """Bytes of this process's files in the directory that have no name."""
    sizes = {}
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if str(link.readlink()).startswith(f"{directory}/"):
                found = link.stat()
                sizes[found.st_ino] = found.st_blocks * 512
    return sum(sizes.values())


@pytest.mark.parametrize(
    ("code", "exponents", "wild", "compress", "passes"),
    [
        ("f4", (-1000, 120), 1, True, False),
        ("f4", (-1000, -6), 3, False, False),
        ("f4", (-149, 120), 6, False, True),
        ("f8", (-1000, 900), 2, False, True),
    ],
)
def test_scratch_is_at_most_six_models_whatever_the_values_are(
    code: str, exponents: tuple[int, int], wild: int, compress: bool, passes: bool, tmp_path: Path
) -> None:
    """Updates of float64 numbers that are spread over the exponents, with negatives, so that sums cancel; two
    updates are checked at once.
    """
    elements = 1_000_003
    parent = spec(w=(code, (elements,)))
    rng = np.random.default_rng(1)
    base = rng.normal(size=elements).astype(code)
    spread = [np.ldexp(rng.normal(size=elements), rng.integers(*exponents, elements)) for _ in range(wild)]
    arrays = [base, *spread, base * np.float32(1.5), *(-values for values in spread[1:])]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    paths = [tmp_path / f"update-{number}.npz" for number in range(len(arrays))]
    for path, values in zip(paths, arrays, strict=True):
        save_arrays(path, {"w": values}, compress=compress)

    def fold_each(fold: Callable[[CheckedUpdate, int], None], order: Sequence[int]) -> int:
        """While the next one is checked."""
        most = 0
        with ExitStack() as stack:
            for number in order:
                with check_update(paths[number], parent, scratch) as update:
                    fold(update, 7)
                    most = max(most, scratch_in_use(scratch))
                    stack.close()
                    stack.enter_context(check_update(paths[number], parent, scratch))
        return most

    results, needed_passes = set(), False
    for seed in range(2):
        order = random.Random(seed).sample(range(len(paths)), len(paths))
        aggregator = FedAvg(parent, scratch)
        most = fold_each(aggregator.fold, order)
        while aggregator.needs_another_pass:
            needed_passes = True
            aggregator.begin_pass()
            most = max(most, fold_each(aggregator.fold_again, order))
            aggregator.end_pass()
        aggregator.write(tmp_path / "aggregate.npz")
        results.add((tmp_path / "aggregate.npz").read_bytes())
        aggregator.close()
        assert most <= 6 * parent.nbytes
    assert (len(results), needed_passes) == (1, passes)
    mean = load_arrays(results.pop())["w"]
    for index in [0, elements - 1, *rng.integers(0, elements, 200).tolist()]:
        values = [read_as(column[index].item(), np.dtype(code)) for column in arrays]
        assert mean[index] == rounded(sum(values, Fraction()) / len(arrays), np.dtype(code))


def test_a_pass_over_other_updates_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = spec(w=("f8", (1,)))
    updates: list[tuple[Arrays, int]] = [
        ({"w": np.array([2.0**exponent])}, 1) for exponent in (0, -200, -400)
    ]
    with checked(updates, parent, tmp_path) as terms:
        aggregator = FedAvg(parent, tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(Expansions, "add", lambda longer, block, *_: longer.dropped.add(block))
            for update, weight in terms:
                aggregator.fold(update, weight)
        with pytest.raises(RuntimeError, match="summed again"):
            aggregator.write(tmp_path / "aggregate.npz")
        with pytest.raises(RuntimeError, match="no pass was begun"):
            aggregator.fold_again(*terms[0])
        aggregator.begin_pass()
        aggregator.fold_again(*terms[0])
        with pytest.raises(ValueError, match="1 updates of 1 examples were folded again, 3 of 3 before"):
            aggregator.end_pass()
        with pytest.raises(RuntimeError, match="only in part"):
            aggregator.begin_pass()
        aggregator.close()


def test_cancelling_scales_in_all_orders(tmp_path: Path) -> None:
    parent = spec(w=("f4", (4,)))
    scales = [2.0**90, -(2.0**90), 1.0, 2.0**-24, 2.0**-70]
    updates: list[tuple[Arrays, int]] = [
        ({"w": np.array([scale, 1e-45, -scale * 3, scale * 1e-30], "f4")}, weight)
        for scale, weight in zip(scales, (2, 2, 1, 1, 4), strict=True)
    ]
    with checked(updates, parent, tmp_path) as terms:
        results = {aggregate(order, parent, tmp_path) for order in itertools.permutations(terms)}
    assert len(results) == 1
    exact = (Fraction(1) + Fraction(2) ** -24 + 4 * Fraction(2) ** -70) / 10
    assert load_arrays(results.pop())["w"][0] == np.float32(exact.numerator / exact.denominator)


@pytest.mark.parametrize("num_examples", [0, -1, MAX_NUM_EXAMPLES + 1])
def test_num_examples_out_of_range_are_refused_and_change_nothing(num_examples: int, tmp_path: Path) -> None:
    parent = spec(w=("f4", (2,)))
    with checked([({"w": np.ones(2)}, 1), ({"w": np.zeros(2)}, 1)], parent, tmp_path) as terms:
        aggregator = FedAvg(parent, tmp_path)
        aggregator.fold(*terms[0])
        with pytest.raises(ValueError, match="num_examples"):
            aggregator.fold(terms[1][0], num_examples)
        assert (aggregator.updates, aggregator.num_examples) == (1, 1)
        aggregator.write(tmp_path / "aggregate.npz")
    assert load_arrays(tmp_path / "aggregate.npz")["w"].tolist() == [1, 1]


def test_an_update_for_another_model_is_refused(tmp_path: Path) -> None:
    parent = spec(w=("f4", (2,)))
    other = spec(w=("f8", (2,)))
    with (
        checked([({"w": np.ones(2)}, 1)], other, tmp_path) as terms,
        pytest.raises(ValueError, match="another model"),
    ):
        FedAvg(parent, tmp_path).fold(*terms[0])


def test_without_an_update_there_is_no_mean(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no update"):
        FedAvg(spec(w=("f4", (2,))), tmp_path).write(tmp_path / "aggregate.npz")
    assert not (tmp_path / "aggregate.npz").exists()


def test_a_half_folded_update_is_never_averaged(tmp_path: Path) -> None:
    parent = spec(a=("f4", (2,)), b=("f4", (200_000,)))
    with checked([({"a": np.ones(2), "b": np.ones(200_000)}, 1)], parent, tmp_path) as terms:
        aggregator = FedAvg(parent, tmp_path)
        aggregator.fold(*terms[0])
        terms[0][0].close()
        with pytest.raises(ValueError, match="closed file"):
            aggregator.fold(*terms[0])
        for step in (
            lambda: aggregator.fold(*terms[0]),
            lambda: aggregator.write(tmp_path / "aggregate.npz"),
        ):
            with pytest.raises(RuntimeError, match="only in part"):
                step()
        aggregator.close()
        aggregator.close()


def test_every_aggregator_keeps_the_contract(tmp_path: Path) -> None:
    parent = spec(w=("f4", (2,)))
    for create in AGGREGATORS.values():
        with checked([({"w": np.array([1, 3])}, 2)], parent, tmp_path) as terms:
            aggregator = create(parent, tmp_path)
            aggregator.fold(*terms[0])
            assert (aggregator.updates, aggregator.num_examples) == (1, 2)
            aggregator.write(tmp_path / "aggregate.npz")
            aggregator.close()
        assert load_arrays(tmp_path / "aggregate.npz")["w"].tolist() == [1, 3]
        assert [path.name for path in tmp_path.iterdir()] == ["aggregate.npz"]
