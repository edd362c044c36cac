"""Heartbeats and statuses on their way to Redis: bounded, and patient while it is away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from combiner.clients.beats import BATCH, Beats
from combiner.clients.outbox import Outbox
from combiner.clients.statuses import TEXT_CHARS, Statuses
from combiner.ports import StateUnavailable

from fedcombiner.wire.eras import ERAS
from fedcombiner.wire.pb import fedn_pb2


class Back:
    """Roster and log at once."""

    def __init__(self) -> None:
        self.away = False
        self.beats: list[Mapping[str, str]] = []
        self.entries: list[Mapping[str, str]] = []

    async def beat(self, clients: Mapping[str, str]) -> None:
        if self.away:
            raise StateUnavailable("away")
        self.beats.append(clients)

    async def statuses(self, entries: Sequence[Mapping[str, str]]) -> None:
        if self.away:
            raise StateUnavailable("away")
        self.entries += entries


@pytest.fixture
def back() -> Any:
    return Back()


async def test_a_batch_names_each_client_once(back: Any) -> None:
    beats = Beats(back)
    for era in ("0.5", "0.8"):
        beats.note("a", era)
    beats.note("b", "0.5")
    await beats.flush()
    await beats.flush()
    assert back.beats == [{"a": "0.8", "b": "0.5"}]


async def test_beats_wait_while_redis_is_away(back: Any) -> None:
    beats = Beats(back)
    beats.note("a", "0.5")
    back.away = True
    await beats.flush()
    beats.note("b", "0.5")
    back.away = False
    await beats.flush()
    assert back.beats == [{"a": "0.5", "b": "0.5"}]


async def test_beats_are_bounded_by_clients(back: Any) -> None:
    beats = Beats(back, max_clients=2)
    for client in ("a", "b", "c", "a"):
        beats.note(client, "0.5")
    await beats.flush()
    assert set(back.beats[0]) == {"a", "b"}


async def test_an_outage_leaves_no_more_beats_than_are_noted_and_they_are_written_in_portions(
    back: Any,
) -> None:
    class Slow(Back):
        async def beat(self, clients: Mapping[str, str]) -> None:
            for number in range(12_000):
                beats.note(f"later{number}", "0.5")
            await super().beat(clients)

    slow: Any = Slow()
    slow.away = True
    beats = Beats(slow, max_clients=12_000)
    for number in range(12_000):
        beats.note(f"c{number}", "0.5")
    await beats.flush()
    assert len(beats._heard) == 12_000
    slow.away = False
    await beats.flush()
    assert [len(some) for some in slow.beats] == [BATCH] * 12
    assert set().union(*slow.beats) == {f"c{number}" for number in range(12_000)}


def status(text: str) -> fedn_pb2.Status:
    return fedn_pb2.Status(status=text, type=fedn_pb2.MODEL_UPDATE)


async def test_the_oldest_statuses_are_dropped_and_counted(back: Any) -> None:
    statuses = Statuses(back, limit=2)
    for text in ("1", "2", "3"):
        statuses.note("a", status(text), ERAS["0.5"])
    await statuses._flush()
    assert [entry["status"] for entry in back.entries] == ["2", "3"]
    assert statuses.dropped == 1


async def test_statuses_wait_while_redis_is_away_and_keep_their_order(back: Any) -> None:
    statuses = Statuses(back, limit=3)
    back.away = True
    for text in ("1", "2"):
        statuses.note("a", status(text), ERAS["0.5"])
    await statuses._flush()
    statuses.note("a", status("3"), ERAS["0.5"])
    back.away = False
    await statuses._flush()
    assert [entry["status"] for entry in back.entries] == ["1", "2", "3"]
    assert statuses.dropped == 0


async def test_a_status_is_kept_short_and_in_words(back: Any) -> None:
    statuses = Statuses(back)
    message = status("x" * 10_000)
    message.log_level = 2  # type: ignore[assignment]  # WARNING, before 0.20
    statuses.note("a", message, ERAS["0.5"])
    await statuses._flush()
    [entry] = back.entries
    assert len(entry["status"]) == TEXT_CHARS
    assert (entry["client"], entry["level"], entry["type"]) == ("a", "WARNING", "MODEL_UPDATE")


async def test_one_client_does_not_push_out_the_statuses_of_others(back: Any) -> None:
    statuses = Statuses(back, limit=10)
    back.away = True
    statuses.note("quiet", status("Q"), ERAS["0.5"])
    for number in range(1000):
        statuses.note("loud", status(f"{number}"), ERAS["0.5"])
    statuses.note("late", status("L"), ERAS["0.5"])
    await statuses._flush()
    back.away = False
    await statuses._flush()
    assert [entry["status"] for entry in back.entries] == ["Q", *(f"{n}" for n in range(992, 1000)), "L"]
    assert statuses.dropped == 992


async def test_an_outbox_is_bounded_in_characters_too(back: Any) -> None:
    outbox: Outbox[Any] = Outbox(back.statuses, batch=100, limit=100, limit_chars=500)
    for number in range(20):
        outbox._put(f"c{number % 4}", {"n": number}, 99)
    assert outbox.dropped == 15
    await outbox._flush()
    assert len(back.entries) == 5
