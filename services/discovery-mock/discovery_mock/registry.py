"""Which combiners are there, and which one a client gets. No clock of its own, no HTTP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from fedcombiner.servicekit.fairqueue import FairDict

MAX_COMBINERS = 1000
MAX_EXPECTED = 10_000
# By then a client that was sent to a combiner is one of its active clients, or has gone elsewhere.
ARRIVES_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Combiner:
    """A combiner as it announced itself.

    Attributes:
        fqdn: the name of a TLS ingress at port 443, if there is one.
        secure: clients speak TLS with it.
        active_clients: how many it had then; None if it did not say.
        max_clients: how many it wants at most; None if it did not say.
    """

    name: str
    address: str
    port: int
    fqdn: str | None
    secure: bool
    active_clients: int | None = None
    max_clients: int | None = None


class RegistryFull(Exception):
    """MAX_COMBINERS are there already."""


def _nobody() -> FairDict[float]:
    return FairDict(MAX_EXPECTED)


@dataclass(slots=True)
class _Entry:
    combiner: Combiner
    heard: float
    active: int
    # Sent here and not in the number that it announces yet: client -> when, by who asked.
    expected: FairDict[float] = field(default_factory=_nobody)

    def load(self, without: str) -> int:
        return self.active + len(self.expected) - (without in self.expected)

    @property
    def is_full(self) -> bool:
        """By what it announced alone: names that somebody asked for are no proof of clients."""
        limit = self.combiner.max_clients
        return limit is not None and self.active >= limit

    def may_be_full(self, without: str) -> bool:
        limit = self.combiner.max_clients
        return limit is not None and self.load(without) >= limit

    def hear(self, combiner: Combiner, now: float) -> None:
        """Those sent here some time ago are in the number that it announces now, if it knows one."""
        self.combiner, self.heard = combiner, now
        if combiner.active_clients is None:
            return
        self.active = combiner.active_clients
        for client in [client for client, sent in self.expected.items() if sent <= now - ARRIVES_S]:
            self.expected.discard(client)


class CombinerRegistry:
    """Combiners that have announced themselves within the last `ttl` seconds.

    A combiner of several replicas announces under one name, from each of them; the last word counts. Its load
    is the number of active clients that it announced, and of those sent to it since, 10,000 at most. The load
    balances; only the announced number makes a combiner full.
    """

    def __init__(self, ttl: float, clock: Callable[[], float]) -> None:
        self._ttl = ttl
        self._clock = clock
        self._entries: dict[str, _Entry] = {}

    def announce(self, combiner: Combiner) -> bool:
        """Add it, or update what is known of it. True if it is new. Raises RegistryFull."""
        entry = self._live().get(combiner.name)
        now = self._clock()
        if entry:
            entry.hear(combiner, now)
        elif len(self._entries) >= MAX_COMBINERS:
            raise RegistryFull
        else:
            self._entries[combiner.name] = _Entry(combiner, now, combiner.active_clients or 0)
        return entry is None

    def choose(self, client: str, preferred: str | None = None, sender: str = "") -> Combiner | None:
        """The one with the least load, or the preferred one; None if each has announced that it is full.

        The same client again is not counted twice, and of equals it gets the one that came first. `sender`
        is who asks, as far as it cannot be made up.
        """
        entries = self._live()
        wanted = entries.values() if preferred is None else filter(None, [entries.get(preferred)])
        with_room = [entry for entry in wanted if not entry.is_full or client in entry.expected]
        if not with_room:
            return None
        chosen = min(with_room, key=lambda entry: (entry.may_be_full(client), entry.load(client)))
        for entry in entries.values():
            entry.expected.discard(client)
        chosen.expected.put(client, self._clock(), sender)
        return chosen.combiner

    def find(self, name: str) -> Combiner | None:
        entry = self._live().get(name)
        return entry.combiner if entry else None

    def live(self) -> list[Combiner]:
        """In the order in which they first came."""
        return [entry.combiner for entry in self._live().values()]

    def load(self, name: str) -> int:
        return self._live()[name].load("")

    def _live(self) -> dict[str, _Entry]:
        oldest = self._clock() - self._ttl
        for name in [name for name, entry in self._entries.items() if entry.heard < oldest]:
            del self._entries[name]
        return self._entries
