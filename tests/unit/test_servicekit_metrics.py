import asyncio
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedcombiner.servicekit.metrics import LoopLag, Metrics


def test_two_processes_worth_of_metrics_live_in_one_test() -> None:
    first, second = Metrics(), Metrics()
    first.counter("events_total", "Events.").inc()
    second.counter("events_total", "Events.")
    assert first.registry.get_sample_value("fedcombiner_events_total") == 1
    assert second.registry.get_sample_value("fedcombiner_events_total") == 0


def test_labels_come_from_closed_sets_and_exist_from_the_start() -> None:
    metrics = Metrics()
    rejected = metrics.counters("rejected_total", "Rejected.", reason=["late", "shape"])
    rejected.labels("late").inc()
    for number in range(1000):
        rejected.labels(f"made up {number}").inc()

    def value(reason: str) -> float | None:
        return metrics.registry.get_sample_value("fedcombiner_rejected_total", {"reason": reason})

    assert (value("late"), value("shape"), value("other"), value("made up 1")) == (1, 0, 1000, None)


def test_the_number_of_label_values_must_fit() -> None:
    rounds = Metrics().gauges("rounds", "Rounds.", state=["running"], kind=["training"])
    rounds.labels("running", "training").set(2)
    with pytest.raises(ValueError, match="zip"):
        rounds.labels("running")


def test_the_exposition_can_be_parsed_and_describes_the_process() -> None:
    body, content_type = Metrics().exposition("")
    names = {family.name for family in text_string_to_metric_families(body.decode())}
    assert {"process_resident_memory_bytes", "process_cpu_seconds", "process_open_fds"} <= names
    assert content_type.startswith("text/plain")


def test_openmetrics_is_given_to_who_asks_for_it() -> None:
    body, content_type = Metrics().exposition("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


async def test_a_blocked_loop_shows_as_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcombiner.servicekit.metrics.LAG_INTERVAL_SECONDS", 0.01)
    metrics = Metrics()
    lag = LoopLag(metrics)
    await lag.start()
    time.sleep(0.06)

    def over_25_ms() -> float:
        name = "fedcombiner_event_loop_lag_seconds"
        total = metrics.registry.get_sample_value(f"{name}_count") or 0
        return total - (metrics.registry.get_sample_value(f"{name}_bucket", {"le": "0.025"}) or 0)

    async with asyncio.timeout(10):
        while not over_25_ms():
            await asyncio.sleep(0)
    await lag.stop()
