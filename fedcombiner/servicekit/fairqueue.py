"""A queue and a mapping that many owners fill, and in which none can push out another's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, KeysView
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Entry(Generic[T]):
    owner: str
    item: T
    size: int


class FairQueue(Generic[T]):
    """Entries in the order in which they were added. It has no bound of its own: its user removes
    entries of the `heaviest` owner until the rest fits, so that no owner can push out another's.

    Every operation takes constant time, whatever the number of owners and entries.
    """

    def __init__(self) -> None:
        self.size = 0
        self._entries: OrderedDict[Entry[T], None] = OrderedDict()
        self._of: dict[str, OrderedDict[Entry[T], None]] = {}
        self._sizes: dict[str, int] = {}
        # Owners by the bit length of their size; in each class, the owner that grew last comes last.
        self._classes: dict[int, OrderedDict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry[T]]:
        return iter(self._entries)

    def __contains__(self, entry: Entry[T]) -> bool:
        return entry in self._entries

    def add(self, owner: str, item: T, size: int = 1) -> Entry[T]:
        """Append; `size` is at least 1."""
        entry = Entry(owner, item, size)
        self._entries[entry] = None
        self._of.setdefault(owner, OrderedDict())[entry] = None
        self._resize(owner, size)
        return entry

    def remove(self, entry: Entry[T]) -> None:
        del self._entries[entry]
        of_owner = self._of[entry.owner]
        del of_owner[entry]
        if not of_owner:
            del self._of[entry.owner]
        self._resize(entry.owner, -entry.size)

    def owners(self) -> KeysView[str]:
        """Owners that have entries, in the order of their oldest one."""
        return self._of.keys()

    def number_of(self, owner: str) -> int:
        return len(self._of.get(owner, ()))

    def oldest_of(self, owner: str) -> Entry[T]:
        return next(iter(self._of[owner]))

    def newest_of(self, owner: str) -> Entry[T]:
        return next(reversed(self._of[owner]))

    def heaviest(self) -> str:
        """The owner whose entries are the largest in all, to within a factor of two.

        Among equals it is the one that grew last: newcomers never displace those who were there.
        """
        return next(reversed(self._classes[max(self._classes)]))

    def _resize(self, owner: str, change: int) -> None:
        self.size += change
        before = self._sizes.pop(owner, 0)
        if before:
            was = self._classes[before.bit_length()]
            del was[owner]
            if not was:
                del self._classes[before.bit_length()]
        if after := before + change:
            self._sizes[owner] = after
            self._classes.setdefault(after.bit_length(), OrderedDict())[owner] = None


class FairDict(Generic[T]):
    """At most `limit` values by their names, in the order in which they were put. Beyond that, the oldest of
    the owner that holds the most is forgotten.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queue: FairQueue[tuple[str, T]] = FairQueue()
        self._entries: dict[str, Entry[tuple[str, T]]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> T:
        return self._entries[name].item[1]

    def items(self) -> Iterator[tuple[str, T]]:
        return (entry.item for entry in self._queue)

    def put(self, name: str, value: T, owner: str) -> None:
        self.discard(name)
        self._entries[name] = self._queue.add(owner, (name, value))
        if len(self) > self._limit:
            oldest, _ = self._queue.oldest_of(self._queue.heaviest()).item
            self.discard(oldest)

    def discard(self, name: str) -> None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            self._queue.remove(entry)
