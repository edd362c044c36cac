"""Round and session configs out of text parameters."""

from __future__ import annotations

import json
from random import Random

import pytest
from combiner.domain.config import HELPERS, RoundConfig
from combiner.domain.params import ConfigError
from combiner.domain.selection import choose, rng_for
from combiner.domain.session import SessionConfig
from combiner.domain.types import Kind
from hypothesis import given, settings
from hypothesis import strategies as st

MINIMAL = {"task": "training", "model_id": "m-1", "round_id": "3"}

# As the controller of FEDn 0.6.2 sends a training round.
FEDN = {
    "session_id": "s1",
    "rounds": "1",
    "round_timeout": "180",
    "buffer_size": "-1",
    "delete_models_storage": "True",
    "clients_required": "1",
    "clients_requested": "8",
    "validate": "True",
    "helper_type": "kerashelper",
    "task": "training",
    "model_id": "0b1f6f0e-7d2b-4a47-a0d6-0c1f3d1c9a55",
    "round_id": "3",
    "committed_at": "2023-11-17 10:00:00",
}


def parse(**changes: str) -> RoundConfig:
    return RoundConfig.parse({**MINIMAL, **changes})


def test_defaults_are_those_of_the_documentation():
    config = parse()
    assert config.task is Kind.TRAINING
    assert (config.model_id, config.round_id, config.session_id) == ("m-1", "3", "")
    assert (config.round_timeout, config.buffer_size) == (180.0, -1)
    assert (config.clients_required, config.clients_requested, config.over_selection) == (1, 8, 1.0)
    assert (config.grace, config.client_grace, config.wait_for_clients) == (None, 10.0, 0.0)
    assert (config.seed, config.attempt) == (None, 1)
    assert (config.helper_type, config.aggregator, config.delete_models_storage) == (
        "numpyhelper",
        "fedavg",
        True,
    )


def test_a_config_of_fedn_is_read_as_it_is():
    config = RoundConfig.parse(FEDN)
    assert config.model_id == FEDN["model_id"]
    assert config.helper_type == "kerashelper"
    assert config.params["committed_at"] == "2023-11-17 10:00:00"


def test_tasks_carry_all_parameters_as_text_and_the_job_id():
    config = RoundConfig.parse({**FEDN, "my_key": "ünïcode", "_job_id": "forged", "_task_id": "forged"})
    data = json.loads(config.task_data("job-7"))
    assert data == {**FEDN, "my_key": "ünïcode", "_job_id": "job-7"}


def test_clients_requested_is_never_fewer_than_required_by_default():
    assert parse(clients_required="20").clients_requested == 20
    assert parse(clients_required="3").clients_requested == 8


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("round_timeout", "0.5", 0.5),
        ("round_timeout", "180.0", 180.0),
        ("round_timeout", " 60 ", 60.0),
        ("round_timeout", "1e3", 1000.0),
        ("round_timeout", "2592000", 2592000.0),
        ("buffer_size", "4", 4),
        ("over_selection", "1.25", 1.25),
        ("grace", "None", None),
        ("grace", "", None),
        ("grace", "0", 0.0),
        ("seed", "-9223372036854775808", -(2**63)),
        ("seed", "None", None),
        ("delete_models_storage", "false", False),
        ("delete_models_storage", "TRUE", True),
        ("task", "Inference", Kind.INFERENCE),
        ("helper_type", "keras", "kerashelper"),
        ("session_id", "a session with spaces", "a session with spaces"),
        ("model_id", "a" * 128, "a" * 128),
    ],
)
def test_good_values(key: str, text: str, value: object):
    assert getattr(parse(**{key: text}), key) == value


@pytest.mark.parametrize("helper", HELPERS)
def test_every_helper_of_fedn_is_accepted(helper: str):
    assert parse(helper_type=helper).helper_type == helper


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("task", "sleep"),
        ("model_id", "../../etc/passwd"),
        ("model_id", "m\n"),
        ("model_id", "a" * 129),
        ("model_id", ".hidden"),
        ("round_id", "x" * 129),
        ("round_id", "a\x00b"),
        ("session_id", "\ud800"),
        ("round_timeout", "0"),
        ("round_timeout", "-1"),
        ("round_timeout", "nan"),
        ("round_timeout", "inf"),
        ("round_timeout", "2592001"),
        ("round_timeout", "1_000"),
        ("round_timeout", "soon"),
        ("round_timeout", "1e999"),
        ("buffer_size", "0"),
        ("buffer_size", "-2"),
        ("buffer_size", "1.5"),
        ("clients_required", "0"),
        ("clients_required", "three"),
        ("clients_required", "\u0663"),  # a digit to int(), but not to anybody else
        ("clients_required", "9" * 5000),
        ("clients_requested", "0"),
        ("over_selection", "0.9"),
        ("over_selection", "11"),
        ("grace", "-1"),
        ("client_grace", "forever"),
        ("wait_for_clients", "-0.1"),
        ("seed", "9223372036854775808"),
        ("attempt", "0"),
        ("helper_type", "os.system"),
        ("aggregator", "fedopt"),
        ("delete_models_storage", "yes"),
    ],
)
def test_bad_values_name_their_key(key: str, text: str):
    with pytest.raises(ConfigError) as caught:
        parse(**{key: text})
    assert caught.value.key == key
    assert caught.value.allowed
    assert str(caught.value).startswith(f"{key} cannot be ")
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("key", ["task", "model_id", "round_id"])
def test_missing_keys_are_named(key: str):
    with pytest.raises(ConfigError, match=f"{key} is missing") as caught:
        RoundConfig.parse({name: value for name, value in MINIMAL.items() if name != key})
    assert (caught.value.key, caught.value.value) == (key, None)


def test_only_training_needs_a_round_id():
    assert RoundConfig.parse({"task": "validation", "model_id": "m"}).round_id == ""


def test_fewer_requested_than_required_cannot_run():
    with pytest.raises(ConfigError) as caught:
        parse(clients_required="5", clients_requested="4")
    assert caught.value.key == "clients_requested"


def test_parameters_are_bounded_in_all():
    with pytest.raises(ConfigError, match="at most 65536 characters"):
        parse(padding="x" * 65536)
    with pytest.raises(ConfigError, match="keys of 1 to 128"):
        parse(**{"k" * 129: "1"})


@given(st.dictionaries(st.sampled_from([*FEDN, "grace", "seed", "attempt"]), st.text(max_size=8), max_size=4))
@settings(max_examples=80, deadline=None)
def test_whatever_is_given_either_parses_or_names_a_key_that_was_given(changes: dict[str, str]):
    assert bad_key({**FEDN, **changes}) in {None, *changes}


def bad_key(params: dict[str, str]) -> str | None:
    try:
        RoundConfig.parse(params)
    except ConfigError as error:
        return error.key
    return None


# --- sessions


def test_session_defaults():
    config = SessionConfig.parse({})
    assert (config.rounds, config.validate, config.max_failed_rounds) == (5, True, 3)
    assert config.round == {"wait_for_clients": "60"}


def test_fedn_names_of_a_session_reach_its_rounds():
    config = SessionConfig.parse(
        {
            "rounds": "2",
            "validate": "False",
            "round_buffer_size": "4",
            "min_clients": "3",
            "requested_clients": "6",
            "helper": "keras",
            "delete_models": "false",
            "learning_rate": "0.1",
        }
    )
    assert (config.rounds, config.validate) == (2, False)
    round_config = RoundConfig.parse({**MINIMAL, **config.round})
    assert (round_config.buffer_size, round_config.clients_required, round_config.clients_requested) == (
        4,
        3,
        6,
    )
    assert (round_config.helper_type, round_config.delete_models_storage) == ("kerashelper", False)
    assert round_config.wait_for_clients == 60.0
    assert round_config.params["learning_rate"] == "0.1"


def test_a_rounds_own_name_goes_before_its_synonym():
    config = SessionConfig.parse({"min_clients": "3", "clients_required": "2", "wait_for_clients": "5"})
    assert (config.round["clients_required"], config.round["wait_for_clients"]) == ("2", "5")
    assert "min_clients" not in config.round


@pytest.mark.parametrize(
    ("key", "text", "named"),
    [
        ("rounds", "0", "rounds"),
        ("rounds", "10001", "rounds"),
        ("validate", "maybe", "validate"),
        ("max_failed_rounds", "0", "max_failed_rounds"),
        ("round_timeout", "-1", "round_timeout"),
        ("min_clients", "none at all", "clients_required"),
    ],
)
def test_a_session_that_cannot_run_is_refused_at_its_start(key: str, text: str, named: str):
    with pytest.raises(ConfigError) as caught:
        SessionConfig.parse({key: text})
    assert caught.value.key == named


# --- selection


def test_choice_depends_on_the_seed_and_not_on_the_order():
    active = [f"c{i:03}" for i in range(100)]
    config = parse(clients_requested="10", seed="7")
    chosen = choose(active, config, rng_for(config, Random()))
    assert chosen == choose(active[::-1], config, rng_for(config, Random()))
    assert len(set(chosen)) == 10
    assert set(chosen) <= set(active)


def test_another_attempt_or_round_asks_others():
    active = [f"c{i:03}" for i in range(100)]
    configs = [
        parse(clients_requested="10", **{"seed": "7", **more})
        for more in ({}, {"attempt": "2"}, {"round_id": "4"}, {"seed": "8"})
    ]
    choices = {tuple(choose(active, config, rng_for(config, Random()))) for config in configs}
    assert len(choices) == 4


def test_without_a_seed_the_given_source_decides():
    source = Random(1)
    assert rng_for(parse(), source) is source


@pytest.mark.parametrize(
    ("requested", "over", "active", "chosen"),
    [("8", "1", 5, 5), ("8", "1", 8, 8), ("8", "1.25", 20, 10), ("10", "1.1", 20, 11), ("3", "1.5", 20, 5)],
)
def test_over_selection(requested: str, over: str, active: int, chosen: int):
    config = parse(clients_requested=requested, over_selection=over)
    assert len(choose([str(i) for i in range(active)], config, Random(0))) == chosen


def test_every_client_is_chosen_as_often_as_the_others():
    active = [f"c{i}" for i in range(10)]
    config = parse(clients_requested="3")
    source = Random(42)
    counts = dict.fromkeys(active, 0)
    for _ in range(2000):
        for client in choose(active, config, source):
            counts[client] += 1
    assert all(500 < count < 700 for count in counts.values())  # 600 expected, sigma about 20
