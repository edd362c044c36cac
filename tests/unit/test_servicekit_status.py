import asyncio

import pytest
from structlog.testing import capture_logs

from fedcombiner.servicekit.metrics import Metrics
from fedcombiner.servicekit.status import Backends, Readiness
from tests.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(1_000.0)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def backends(metrics: Metrics, clock: Clock) -> Backends:
    return Backends(metrics.backend_up, clock=clock)


def test_readiness_goes_from_starting_to_ready_to_draining_and_never_back() -> None:
    changes: list[str] = []
    readiness = Readiness(lambda: changes.append(readiness.state))
    assert not readiness.ready
    readiness.mark_ready()
    readiness.mark_ready()
    assert readiness.ready
    readiness.mark_draining()
    readiness.mark_ready()
    readiness.mark_draining()
    assert not readiness.ready
    assert changes == ["ready", "draining"]


def test_a_process_that_drains_before_it_was_ready_never_becomes_ready() -> None:
    readiness = Readiness()
    readiness.mark_draining()
    readiness.mark_ready()
    assert not readiness.ready


def test_the_gauge_follows_and_starts_at_zero(backends: Backends, metrics: Metrics) -> None:
    redis = backends.register("redis")
    seen = []
    for change in (lambda: None, redis.mark_up, lambda: redis.mark_down("gone"), redis.mark_up):
        change()
        seen.append(metrics.registry.get_sample_value("backend_up", {"backend": "redis"}))
    assert seen == [0, 1, 0, 1]


def test_each_change_is_logged_and_passed_on_once(metrics: Metrics, clock: Clock) -> None:
    changes: list[None] = []
    redis = Backends(metrics.backend_up, notify=lambda: changes.append(None), clock=clock).register("redis")
    with capture_logs() as logs:
        for _ in range(3):
            redis.mark_up()
        for _ in range(3):
            redis.mark_down(ConnectionError("refused"))
        clock.now += 7
        redis.mark_up()
    assert [entry["event"] for entry in logs] == ["back end is up", "back end is down", "back end is up"]
    assert logs[1]["error"] == "refused"
    assert logs[2]["away_seconds"] == 7
    assert len(changes) == 3


def test_a_back_end_that_was_never_there_is_down_once(backends: Backends) -> None:
    with capture_logs() as logs:
        backends.register("redis").mark_down("a")
        backends.register("redis").mark_down("b")
    assert len(logs) == 1
    assert backends.snapshot()["redis"]["last_error"] == "b"


def test_errors_are_shown_without_passwords_and_control_characters(backends: Backends) -> None:
    redis = backends.register("redis")
    redis.mark_down(ConnectionError("redis://me:hunter2@host:6379 \x1b[2J"))
    assert backends.snapshot()["redis"]["last_error"] == r"redis://***@host:6379 \x1b[2J"
    redis.mark_down(TimeoutError())
    assert redis.last_error == "TimeoutError"


def test_the_snapshot_says_since_when(backends: Backends) -> None:
    redis = backends.register("redis")
    assert backends.snapshot() == {"redis": {"up": False, "since": None, "last_error": None}}
    redis.mark_up()
    assert backends.snapshot()["redis"]["since"] == "1970-01-01T00:16:40+00:00"


def test_all_up_needs_every_one(backends: Backends) -> None:
    redis, store = backends.register("redis"), backends.register("store")
    redis.mark_up()
    assert not backends.all_up
    store.mark_up()
    assert backends.all_up
    redis.mark_down("gone")
    assert not backends.all_up


async def test_first_contact_comes_when_each_has_answered_once_also_if_one_is_away_again(
    backends: Backends,
) -> None:
    redis, store = backends.register("redis"), backends.register("store")
    contact = asyncio.create_task(backends.first_contact())
    redis.mark_up()
    redis.mark_down("gone")
    await asyncio.sleep(0)
    assert not contact.done()
    store.mark_up()
    async with asyncio.timeout(10):
        await contact
