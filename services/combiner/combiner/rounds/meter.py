"""What the rounds report about themselves; the metrics adapter counts it."""

from __future__ import annotations

from typing import Protocol


class Meter(Protocol):
    def job_ended(self, kind: str, state: str) -> None: ...

    def update(self, verdict: str, reason: str) -> None:
        """An answer reached the journal: received, repeated or rejected at the door."""

    def nameless(self, rpc: str) -> None:
        """A message of a client came that is ignored, because it names nobody who could be one."""

    def accepted(self) -> None:
        """An update was checked and is in its aggregate."""

    def rejected(self, reason: str) -> None:
        """An update was checked and is no good."""

    def part(self, part: str, seconds: float) -> None:
        """Time spent `checking`, `folding` or `writing`."""
