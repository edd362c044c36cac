"""Choosing which caller loses something when all callers together have too much of it."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def by_largest_share(things: Iterable[T], share: Callable[[T], str]) -> Iterator[T]:
    """Yield the first thing of the share that has most of them left, again and again."""
    of_share: dict[str, deque[T]] = {}
    for thing in things:
        of_share.setdefault(share(thing), deque()).append(thing)
    heap = [(-len(queue), name) for name, queue in of_share.items()]
    heapq.heapify(heap)
    while heap:
        _, name = heap[0]
        queue = of_share[name]
        yield queue.popleft()
        if queue:
            heapq.heapreplace(heap, (-len(queue), name))
        else:
            heapq.heappop(heap)
