"""The demo's data, its network, and its picture."""

from __future__ import annotations

import numpy as np

from fedcombiner.cli.demo import chart
from fedcombiner.demo import digits


def test_the_shares_are_a_partition_of_the_training_data() -> None:
    data, held_out = digits.load(1)
    shares = digits.split(data, 10, 1)
    assert sum(len(share.digits) for share in shares) == len(data.digits)
    assert all(len(share.digits) for share in shares)
    assert len(held_out.digits) == digits.HELD_OUT
    assert sorted(np.concatenate([s.images.sum(axis=1) for s in shares])) == sorted(data.images.sum(axis=1))


def test_more_clients_than_a_digit_has_images_all_get_some() -> None:
    data, _ = digits.load(1)
    assert all(len(share.digits) for share in digits.split(data, 100, 3))


def test_training_lowers_the_loss_and_leaves_the_model_it_began_with() -> None:
    data, held_out = digits.load(1)
    model = digits.seed_model(1)
    before = {name: value.copy() for name, value in model.items()}
    trained = digits.train(model, data, seed=1)
    assert digits.evaluate(trained, held_out)["loss"] < digits.evaluate(model, held_out)["loss"] / 2
    assert all(np.array_equal(model[name], before[name]) for name in model)


def test_the_chart_has_a_column_for_each_value_and_copes_with_none() -> None:
    lines = chart([0.5, 1.0])
    assert len(lines) == 10
    assert lines[0].count("██") == 1
    assert lines[-3].count("██") == 2
    assert chart([]) == []
    assert chart([1.0])
