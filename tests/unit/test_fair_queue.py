"""The heaviest owner, in constant time, compared with a plain account."""

from __future__ import annotations

import random
from collections import Counter

from fedcombiner.servicekit.fairqueue import FairQueue


def test_entries_keep_their_order() -> None:
    queue: FairQueue[int] = FairQueue()
    entries = [queue.add(owner, number) for number, owner in enumerate("abcab")]
    queue.remove(entries[1])
    assert [entry.item for entry in queue] == [0, 2, 3, 4]
    assert (queue.oldest_of("a").item, queue.newest_of("a").item, queue.number_of("b")) == (0, 3, 1)


def test_the_heaviest_is_heaviest_by_size() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(3):
        queue.add("many small", number, 10)
    large = queue.add("one large", 9, 1000)
    queue.add("one small", 10, 10)
    assert queue.heaviest() == "one large"
    queue.remove(large)
    assert queue.heaviest() == "many small"


def test_of_equals_the_one_that_grew_last_is_the_heaviest() -> None:
    queue: FairQueue[None] = FairQueue()
    for owner in "abc":
        queue.add(owner, None)
    assert queue.heaviest() == "c"


def test_the_heaviest_holds_at_least_half_of_what_anybody_holds() -> None:
    rng = random.Random(7)
    queue: FairQueue[None] = FairQueue()
    sizes: Counter[str] = Counter()
    for _ in range(20_000):
        if rng.random() < 0.55 or not len(queue):
            owner, size = rng.choice("abcdefgh"), rng.randrange(1, 5000)
            queue.add(owner, None, size)
            sizes[owner] += size
        else:
            owner = rng.choice([owner for owner in sizes if queue.number_of(owner)])
            entry = rng.choice([queue.oldest_of(owner), queue.newest_of(owner)])
            queue.remove(entry)
            sizes[owner] -= entry.size
        assert queue.size == sizes.total()
        if len(queue):
            assert 2 * sizes[queue.heaviest()] > max(sizes.values())


def test_nothing_is_kept_of_owners_who_hold_nothing() -> None:
    queue: FairQueue[None] = FairQueue()
    for number in range(10_000):
        queue.remove(queue.add(f"c{number}", None))
    assert len(queue) == 0
    assert (queue._of, queue._sizes, queue._classes) == ({}, {}, {})
