"""FedAvg over checked updates: same bytes in every order, whole or not at all."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from combiner.aggregation import AGGREGATORS, MAX_NUM_EXAMPLES, FedAvg
from numpy.typing import NDArray

from fedcombiner.modelstorage.formats import ModelSpec, TensorSpec
from fedcombiner.modelstorage.formats.arrays import load_arrays, save_arrays
from fedcombiner.modelstorage.formats.npz import CheckedUpdate, check_update, read_spec, write_model

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
