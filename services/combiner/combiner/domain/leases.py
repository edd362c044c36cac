"""Whose lease has lapsed, and whether an outage explains a silence: seen by this process alone.

Nobody's clock is compared with anybody else's. As in the leader election of Kubernetes (client-go,
tools/leaderelection), an observer notes when it first saw a lease as it is now; the holder changes `beat`
with every renewal, so a lease that was looked at for a whole window and did not change has no living holder.
Looks must follow each other, and be healthy: after a slow or failed one, or when this process itself did not
look for a while, every window starts anew: the silence may be ours or Redis's and not the holder's.

Times are seconds of any one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

LEASE_WINDOW = 6.0
CLIENT_WINDOW = 10.0
# Of a window: looks further apart than this are not one observation.
_LARGEST_GAP = 2 / 3


@dataclass(frozen=True, slots=True)
class Windows:
    """Seconds of silence after which the holder of a lease, or a client, counts as gone."""

    lease: float = LEASE_WINDOW
    client: float = CLIENT_WINDOW


DEFAULT_WINDOWS = Windows()


class LeaseLike(Protocol):
    """A lease as anyone can see it; an empty owner means that it was given back."""

    @property
    def work(self) -> str: ...
    @property
    def owner(self) -> str: ...
    @property
    def token(self) -> int: ...
    @property
    def beat(self) -> int: ...


L = TypeVar("L", bound=LeaseLike)


class OutageGuard:
    """Knows since when the looks were healthy without a break."""

    def __init__(self, window: float = CLIENT_WINDOW) -> None:
        self.window = window
        self._since: float | None = None
        self._last = 0.0

    def observe(self, now: float, healthy: bool) -> bool:
        """Note a look. False if what was observed before it no longer counts."""
        unbroken = self._since is not None and now - self._last <= self.window * _LARGEST_GAP
        self._last = now
        if not healthy:
            self._since = None
            return False
        if not unbroken:
            self._since = now
        return unbroken

    @property
    def settled(self) -> bool:
        """The last look ended a whole window without an outage: a silence that long is the other side's."""
        return self._since is not None and self._last - self._since >= self.window


class LeaseWatch:
    """Finds the leases whose holders are gone."""

    def __init__(self, window: float = LEASE_WINDOW) -> None:
        self._guard = OutageGuard(window)
        self._first_seen: dict[Hashable, float] = {}

    def observe(self, now: float, views: Iterable[L], *, healthy: bool) -> list[L]:
        """Look at all leases. Returns those that may be taken over: given back, or unchanged for a window.

        A lapsed lease is returned at every look until it changes or goes away.
        """
        leases = list(views)
        if not self._guard.observe(now, healthy):
            self._first_seen.clear()
        before = self._first_seen
        self._first_seen = {_key(lease): before.get(_key(lease), now) for lease in leases} if healthy else {}
        return [lease for lease in leases if not lease.owner or self._lapsed(lease, now)]

    def pause(self, now: float, at_most: float) -> float:
        """Seconds until the next look is due: `at_most`, or less if one of the leases may lapse before."""
        ends = (seen + self._guard.window - now for seen in self._first_seen.values())
        return min([at_most, *(end for end in ends if end > 0)])

    def _lapsed(self, lease: LeaseLike, now: float) -> bool:
        return now - self._first_seen.get(_key(lease), now) >= self._guard.window


def _key(lease: LeaseLike) -> Hashable:
    return lease.work, lease.owner, lease.token, lease.beat
