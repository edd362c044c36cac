"""Warnings about a Redis that does not keep what it confirms."""

from __future__ import annotations

from typing import Any

import pytest
from combiner.adapters.durability import Durability, shortcomings
from structlog.testing import capture_logs

from fedcombiner.servicekit.metrics import Metrics

GOOD: dict[str, Any] = {
    "maxmemory_policy": "noeviction",
    "aof_enabled": 1,
    "appendfsync": "always",
    "connected_slaves": 1,
}


@pytest.mark.parametrize(
    ("change", "replicas", "said"),
    [
        ({"maxmemory_policy": "allkeys-lru"}, 0, "maxmemory-policy is allkeys-lru: set noeviction"),
        ({"aof_enabled": 0}, 0, "appendonly is no: set yes"),
        ({"appendfsync": "everysec"}, 0, "appendfsync is everysec: set always"),
        ({}, 2, "REDIS_WAIT is 2, but 1 replicas are connected"),
    ],
)
def test_each_shortcoming_names_the_value_and_the_right_one(
    change: dict[str, Any], replicas: int, said: str
) -> None:
    [found] = shortcomings(GOOD | change, replicas)
    assert found.startswith(said)


def test_a_durable_redis_and_one_that_does_not_tell_have_none() -> None:
    assert not shortcomings(GOOD, 1)
    assert not shortcomings({}, 0)


def test_it_is_logged_once_and_shown_as_long_as_it_lasts() -> None:
    metrics = Metrics()
    durability = Durability(metrics)
    assert durability.status() == {"durable": None, "shortcomings": []}
    with capture_logs() as logs:
        for _ in range(3):
            durability.take(GOOD | {"aof_enabled": 0})
    [said] = logs
    assert (said["log_level"], said["event"]) == ("warning", "Redis may lose what it confirmed")
    status = durability.status()
    assert status["durable"] is False
    assert "appendonly is no" in str(status["shortcomings"])
    assert b"redis_durable 0.0" in metrics.exposition("")[0]
    with capture_logs() as logs:
        durability.take(GOOD)
        durability.take(GOOD)
    assert [line["log_level"] for line in logs] == ["info"]
    assert durability.status() == {"durable": True, "shortcomings": []}
    assert b"redis_durable 1.0" in metrics.exposition("")[0]


def test_another_shortcoming_is_logged_again() -> None:
    durability = Durability(Metrics())
    with capture_logs() as logs:
        durability.take(GOOD | {"aof_enabled": 0})
        durability.take(GOOD | {"maxmemory_policy": "volatile-lru"})
    assert len(logs) == 2
