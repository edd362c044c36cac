"""The queue of stream changes for the roster: bounded, and no stream is forgotten."""

from __future__ import annotations

import random

from combiner.clients.streamchanges import StreamChanges
from combiner.ports import Stream, StreamChange, View

BATCH = 300


def stream(number: int) -> Stream:
    return Stream(f"r:{number}", "c1", View.ALL, "0.6")


def named(changes: StreamChanges) -> list[tuple[str, bool]]:
    return [(change.stream.stream_id, change.opened) for change in changes.batch(BATCH)]


def test_a_stream_that_closes_before_it_is_sent_leaves_nothing() -> None:
    changes = StreamChanges()
    for number in range(200_000):
        changes.opened(stream(number))
        changes.closed(stream(number), by_us=False)
    assert len(changes) == 0


def test_a_client_that_reconnects_during_an_outage_fills_one_batch_at_most() -> None:
    changes = StreamChanges()
    for number in range(1000):
        changes.opened(stream(number))
    changes.confirm(changes.batch(1000))
    for number in range(1000, 100_000):
        changes.opened(stream(number))
        changes.batch(BATCH)  # Redis does not confirm it
        changes.closed(stream(number), by_us=False)
    assert len(changes) <= BATCH


def test_a_closing_takes_the_place_of_an_opening_that_may_have_arrived() -> None:
    changes = StreamChanges()
    changes.opened(stream(1))
    changes.batch(BATCH)
    changes.closed(stream(1), by_us=False)
    assert named(changes) == [("r:1", False)]


def test_a_registered_stream_that_is_announced_again_is_closed_all_the_same() -> None:
    """As after a resync: the roster knows it, whatever is queued."""
    changes = StreamChanges()
    changes.opened(stream(1))
    changes.confirm(changes.batch(BATCH))
    changes.opened(stream(1))
    changes.closed(stream(1), by_us=False)
    assert named(changes) == [("r:1", False)]


def test_a_closing_during_the_step_that_opens_is_sent_after_it() -> None:
    changes = StreamChanges()
    changes.opened(stream(1))
    under_way = changes.batch(BATCH)
    changes.closed(stream(1), by_us=True)
    changes.confirm(under_way)
    assert list(changes.batch(BATCH)) == [StreamChange(stream(1), opened=False, by_us=True)]


def test_after_any_sequence_the_roster_knows_exactly_the_open_streams() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        changes, still_open, known = StreamChanges(), set[int](), set[str]()

        def apply(batch: object, known: set[str] = known) -> None:
            for change in batch:  # type: ignore[attr-defined]
                (known.add if change.opened else known.discard)(change.stream.stream_id)

        for number in range(200):
            action = rng.randrange(5)
            if action <= 1:
                changes.opened(stream(number))
                still_open.add(number)
            elif action == 2 and still_open:
                closing = rng.choice(sorted(still_open))
                still_open.discard(closing)
                changes.closed(stream(closing), by_us=False)
            elif action == 3:
                batch = changes.batch(rng.randrange(1, 4))
                apply(batch)
                if rng.random() < 0.5:  # else the reply was lost
                    changes.confirm(batch)
            elif action == 4 and rng.random() < 0.1:
                for number in still_open:
                    changes.opened(stream(number))
        while len(changes):
            batch = changes.batch(7)
            apply(batch)
            changes.confirm(batch)
        assert known == {f"r:{number}" for number in still_open}
