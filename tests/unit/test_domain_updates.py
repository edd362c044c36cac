"""What updates and failures say about themselves."""

from __future__ import annotations

import json
from typing import Any

import pytest
from combiner.domain.updates import (
    MAX_CHARS,
    MAX_EXAMPLES,
    TaskRef,
    parse_failure,
    parse_task_data,
    parse_update_meta,
)
from hypothesis import given, settings
from hypothesis import strategies as st

DATA = json.dumps({"round_id": "3", "session_id": "s1", "_job_id": "job-1", "_task_id": "task-1"})


def meta(num_examples: object = 10, config: object = DATA, **more: object) -> str:
    """As FEDn's Python clients write it."""
    training = {"num_examples": num_examples, "lr": 0.1}
    parts = {"fetch_model": 0.0013, "exec_training": 0.22, "training_metadata": training, "config": config}
    return json.dumps({**parts, **more})


def test_an_update_of_a_python_client():
    found = parse_update_meta(meta())
    assert (found.num_examples, found.problem) == (10, "")
    assert (found.task_id, found.job_id, found.round_id) == ("task-1", "job-1", "3")


def test_an_update_of_the_cpp_client_has_the_data_elsewhere():
    found = parse_update_meta('{"training_metadata": {"num_examples": 3000}}', DATA)
    assert (found.num_examples, found.task_id, found.job_id) == (3000, "task-1", "job-1")


def test_an_update_of_the_android_client_says_round_1_and_nothing_else():
    found = parse_update_meta(
        '{"training_metadata": {"num_examples": 1}, "config": "{\\"round_id\\": 1}"}', DATA
    )
    assert (found.task_id, found.job_id, found.round_id) == ("", "", "1")


@pytest.mark.parametrize("value", [1, 12.0, 1e3, MAX_EXAMPLES, float(MAX_EXAMPLES)])
def test_whole_numbers_of_examples(value: float):
    found = parse_update_meta(meta(value))
    assert (found.num_examples, found.problem) == (int(value), "")
    assert type(found.num_examples) is int


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (-1, "-1"),
        (2.5, "2.5"),
        (MAX_EXAMPLES + 1, "536870912"),
        (1e300, "1e+300"),
        (10**30, "too large a number"),
        (-(10**30), "too large a number"),
        (True, "True"),
        ("10", "'10'"),
        ("x" * 100_000, "'xxx"),
        ("\n\x1b[2J", "'\\n\\x1b[2J'"),
        ([10], "a list"),
        ({"n": 10}, "an object"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_other_numbers_of_examples_are_a_problem(value: object, shown: str):
    found = parse_update_meta(meta(value))
    assert found.num_examples == 0
    assert found.problem.startswith(f"num_examples is {shown}")
    assert found.problem.isprintable()
    assert len(found.problem) < 200
    assert (found.task_id, found.job_id) == ("task-1", "job-1")


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"training_metadata": null}',
        '{"training_metadata": [1]}',
        '{"training_metadata": {"num_examples": null}}',
        '{"training_metadata": "{}"}',
    ],
)
def test_without_a_number_of_examples(text: str):
    found = parse_update_meta(text)
    assert (found.num_examples, found.problem) == (0, "training_metadata.num_examples is missing")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{" * 10_000,
        "[" * 10_000 + "]" * 10_000,
        '{"a":' * 10_000 + "1" + "}" * 10_000,
        '{"x": "' + "y" * (1 << 20) + '"}',
    ],
)
def test_meta_that_is_no_object(text: str):
    found = parse_update_meta(text, DATA)
    assert (found.num_examples, found.task_id) == (0, "task-1")
    assert found.problem == f"meta is not a JSON object of at most {MAX_CHARS} characters"


@pytest.mark.parametrize(
    "config",
    ["[" * 10_000, "x" * 200_000, 3, None, ["a"], {"_task_id": "t"}, '{"_task_id": "../../x"}', "{}"],
)
def test_data_that_is_no_data_leaves_the_task_open(config: object):
    found = parse_update_meta(meta(config=config))
    assert (found.num_examples, found.task_id, found.job_id, found.round_id) == (10, "", "", "")


@pytest.mark.parametrize(
    ("data", "ref"),
    [
        ('{"_task_id": "t", "_job_id": "j", "round_id": 7}', TaskRef("t", "j", "7")),
        ('{"_task_id": 3, "_job_id": ["j"], "round_id": {}}', TaskRef()),
        ('{"_task_id": "\\ud800", "_job_id": "a b", "round_id": "\\ud800"}', TaskRef()),
        ('{"_task_id": "' + "t" * 129 + '", "round_id": "' + "r" * 129 + '"}', TaskRef()),
        ('{"round_id": true}', TaskRef()),
        ('{"round_id": 1' + "0" * 100 + "}", TaskRef()),
    ],
)
def test_task_data(data: str, ref: TaskRef):
    assert parse_task_data(data) == ref


def test_a_failure_names_its_task_by_the_data_of_the_request():
    request = {"sender": {"name": "combiner", "role": "COMBINER"}, "modelId": "m", "correlationId": "c-1"}
    assert parse_failure(json.dumps({**request, "data": DATA})) == TaskRef("task-1", "job-1", "3")
    assert parse_failure(json.dumps({**request, "data": "no json"})) == TaskRef("c-1")
    assert parse_failure(json.dumps(request)) == TaskRef("c-1")


@pytest.mark.parametrize("text", ["", "{}", "[" * 10_000, '{"correlationId": 5, "data": {"_task_id": "t"}}'])
def test_a_failure_that_names_nothing(text: str):
    assert parse_failure(text) == TaskRef()


jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["training_metadata", "num_examples", "config", "_task_id", "_job_id", "round_id", "data"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(jsons, jsons)
@settings(max_examples=100, deadline=None)
def test_whatever_json_comes_it_is_understood_or_a_problem(first: Any, second: Any):
    config = second if isinstance(second, str) else json.dumps(second)
    if isinstance(first, dict) and "config" in first:
        first["config"] = json.dumps(first["config"])
    found = parse_update_meta(json.dumps(first), config)
    assert bool(found.problem) == (found.num_examples == 0)
    assert 0 <= found.num_examples <= MAX_EXAMPLES
    for text in (found.problem, found.task_id, found.job_id, found.round_id):
        text.encode()
        assert len(text) < 200


@given(st.text(max_size=100), st.text(max_size=100))
@settings(max_examples=100, deadline=None)
def test_whatever_text_comes_nothing_is_raised(first: str, second: str):
    parse_update_meta(first, second)
    parse_failure(first)
