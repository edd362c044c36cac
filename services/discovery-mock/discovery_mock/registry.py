"""Which combiners are there, and who is next to get a client. No clock of its own, no HTTP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MAX_COMBINERS = 1000


@dataclass(frozen=True, slots=True)
class Combiner:
    """A combiner as it announced itself. `fqdn`: the name of a TLS ingress at port 443, if there is one."""

    name: str
    address: str
    port: int
    fqdn: str | None
    secure: bool


class RegistryFull(Exception):
    """MAX_COMBINERS are there already."""


class CombinerRegistry:
    """Combiners that have announced themselves within the last `ttl` seconds.

    A combiner of several replicas announces under one name, from each of them; the last word counts. Clients
    are dealt out in turn, in the order in which the combiners first came.
    """

    def __init__(self, ttl: float, clock: Callable[[], float]) -> None:
        self._ttl = ttl
        self._clock = clock
        self._combiners: dict[str, Combiner] = {}
        self._heard: dict[str, float] = {}
        self._turn = 0

    def announce(self, combiner: Combiner) -> bool:
        """Add it, or update what is known of it. True if it is new. Raises RegistryFull."""
        self._forget_the_silent()
        new = combiner.name not in self._combiners
        if new and len(self._combiners) >= MAX_COMBINERS:
            raise RegistryFull
        self._combiners[combiner.name] = combiner
        self._heard[combiner.name] = self._clock()
        return new

    def find(self, name: str) -> Combiner | None:
        self._forget_the_silent()
        return self._combiners.get(name)

    def next(self) -> Combiner | None:
        """Whose turn it is; None if there is none."""
        combiners = self.live()
        if not combiners:
            return None
        self._turn += 1
        return combiners[(self._turn - 1) % len(combiners)]

    def live(self) -> list[Combiner]:
        self._forget_the_silent()
        return list(self._combiners.values())

    def _forget_the_silent(self) -> None:
        oldest = self._clock() - self._ttl
        for name in [name for name, heard in self._heard.items() if heard < oldest]:
            del self._combiners[name], self._heard[name]
