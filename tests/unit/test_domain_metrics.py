"""Metrics out of clients' answers."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping

import pytest
from combiner.domain import metrics
from combiner.domain.metrics import Figures, mean_metrics, parse_metrics
from hypothesis import example, given, settings
from hypothesis import strategies as st


def test_numbers_at_the_top_are_taken_and_nothing_else():
    text = (
        '{"accuracy": 0.9, "count": 3, "nan": NaN, "inf": Infinity, "minus": -Infinity, "yes": true, '
        '"no": null, "report": {"f1": 1.0}, "list": [1], "text": "0.5", "huge": 1e999, '
        '"bad\\nname": 1, "\\ud800": 1, "": 1}'
    )
    assert parse_metrics(text) == {"accuracy": 0.9, "count": 3.0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[1, 2]",
        "3",
        '"text"',
        "{",
        "{'single': 1}",
        "\x00",
        "[" * 10_000,
        '{"a":' * 10_000,
        '{"deep": ' + "[" * 10_000 + "]" * 10_000 + "}",
        '{"a": ' + "9" * 5_000 + "}",
        '{"a": 1, "padding": "' + "x" * 65_536 + '"}',
    ],
)
def test_garbage_has_no_metrics(text: str):
    assert parse_metrics(text) == {}


def test_an_integer_beyond_floats_is_left_out():
    assert parse_metrics('{"a": 1' + "0" * 400 + ', "b": 1}') == {"b": 1.0}


def test_names_are_bounded_in_number_and_length():
    many = {f"m{i}": i for i in range(300)}
    assert list(parse_metrics(json.dumps(many))) == [f"m{i}" for i in range(200)]
    assert parse_metrics(json.dumps({"n" * 100: 1, "n" * 101: 2})) == {"n" * 100: 1.0}


def test_means_are_over_the_clients_that_have_the_metric():
    assert mean_metrics([{"a": 1.0, "b": 5.0}, {"a": 2.0}, {}]) == {"a": 1.5, "b": 5.0}
    assert mean_metrics([]) == {}


def test_means_of_the_largest_floats_are_finite():
    biggest = 1.7976931348623157e308
    assert mean_metrics([{"a": biggest}, {"a": biggest}])["a"] == pytest.approx(biggest)


def test_when_clients_differ_the_most_common_names_win():
    clients = [{"common": 1.0, **{f"c{i}-{j}": 1.0 for j in range(150)}} for i in range(2)]
    means = mean_metrics(clients)
    assert len(means) == 200
    assert "common" in means


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_text_gives_finite_numbers(text: str):
    assert all(math.isfinite(value) for value in parse_metrics(text).values())


jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=5), jsons, max_size=8))
@settings(max_examples=50, deadline=None)
def test_any_json_object_gives_its_own_numbers(given_object: Mapping[str, object]):
    for name, value in parse_metrics(json.dumps(given_object)).items():
        assert given_object[name] == value


@given(
    st.lists(
        st.dictionaries(st.sampled_from("abc"), st.floats(allow_nan=False, allow_infinity=False)), max_size=8
    )
)
@example([{"a": sys.float_info.max}] * 3)
@settings(max_examples=50, deadline=None)
def test_means_lie_between_and_do_not_depend_on_the_order(clients: list[dict[str, float]]):
    means = mean_metrics(clients)
    assert mean_metrics(clients[::-1]) == means
    for name, mean in means.items():
        values = [metrics[name] for metrics in clients if name in metrics]
        assert min(values) <= mean <= max(values) or mean == pytest.approx(min(values))


# --- the figures of a whole validation


def test_figures_are_the_means_and_what_each_client_said():
    figures = Figures(3)
    figures.add({"a": '{"accuracy": 0.5, "loss": 2}', "b": '{"accuracy": 1.0}'})
    figures.add({"c": "garbage"})
    assert figures.means() == {"accuracy": 0.75, "loss": 2.0}
    assert figures.clients == {"a": {"accuracy": 0.5, "loss": 2.0}, "b": {"accuracy": 1.0}, "c": {}}


def test_figures_of_many_clients_are_bounded_and_their_means_are_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "MAX_CLIENT_VALUES", 20)
    text = json.dumps({f"m{number}": number for number in range(5)})
    figures = Figures(10)
    figures.add({f"c{number}": text for number in range(10)})
    assert figures.means() == {f"m{number}": float(number) for number in range(5)}
    assert all(own == {"m0": 0.0, "m1": 1.0} for own in figures.clients.values())
    assert len(figures.clients) == 10


def test_clients_with_names_of_their_own_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "MAX_DISTINCT", 7)
    figures = Figures(100)
    figures.add({f"c{number:03}": json.dumps({f"only-{number:03}": 1}) for number in range(100)})
    assert list(figures.means()) == [f"only-{number:03}" for number in range(7)]
