"""When a round closes and what becomes of it: one state machine, without a clock of its own.

It mirrors the journal of one job. The owner of the job tells it what the journal recorded, in the journal's
order, asks `decide(now)` after each step and when the time of the last `Wait` has come, and closes the job
when told to:

    asked ──▶ received ──▶ accepted | rejected        (an answer to a validation is accepted at once)
      └──▶ failed ──▶ received                        (a client that was given up answers after all)
             └──────▶ asked                           (it failed because of us, and is asked again)

Steps that do not fit this picture, and clients that were not asked, change nothing: a step may be told twice.
Times are seconds by the clock of Redis. docs/life-of-a-round.md tells the same for people.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from combiner.domain.config import RoundConfig
from combiner.domain.types import ClientState, Job, Kind

ASKED, RECEIVED, ACCEPTED = ClientState.ASKED, ClientState.RECEIVED, ClientState.ACCEPTED
REJECTED, FAILED = ClientState.REJECTED, ClientState.FAILED


class Why(StrEnum):
    """Why a round was closed."""

    GOAL = "goal"  # as many updates as wanted are accepted
    ANSWERED = "answered"  # every asked client has answered or failed
    GRACE = "grace"  # enough are accepted, and stragglers had their time
    DEADLINE = "deadline"
    HOPELESS = "hopeless"  # clients_required can no longer be reached


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again at the next step, or at this time at the latest (None: only after a step)."""

    until: float | None


@dataclass(frozen=True, slots=True)
class Close:
    """Nothing is received any more; what was received before is still judged and belongs to the aggregate."""

    why: Why


@dataclass(frozen=True, slots=True)
class Succeeded:
    """Enough was accepted."""


@dataclass(frozen=True, slots=True)
class Failed:
    """`reason` is for a person."""

    reason: str


class RoundPolicy:
    """The policy of one round over the clients it asked."""

    def __init__(self, asked: Iterable[str], config: RoundConfig, deadline: float) -> None:
        self._config = config
        self._deadline = deadline
        self._states = dict.fromkeys(asked, ASKED)
        self._count = Counter({ASKED: len(self._states)})
        self._accepted_at: list[float] = []
        self._away: dict[str, float] = {}
        self._by_absence: list[
            tuple[float, str]
        ] = []  # a heap over `_away`, with entries that are out of date
        self._closed: Close | None = None
        self._required = config.clients_required
        self._goal = max(_wanted(config, len(self._states)), self._required)

    @classmethod
    def resume(cls, job: Job, config: RoundConfig, now: float) -> RoundPolicy:
        """The policy of a job that was opened before, by this process or another: the journal is its memory.

        Only absences are not in the journal: tell them again.
        """
        policy = cls(job.clients, config, job.deadline_ms / 1000)
        for record in job.clients.values():
            at = record.at_ms / 1000 if record.at_ms else now
            policy._step(record.client, record.state, (ASKED,), at)
        if job.closed:
            policy._closed = Close(_why(job.closed_why))
        return policy

    # --- what happened

    def received(self, client: str) -> None:
        self._step(client, RECEIVED, (ASKED, FAILED))

    def accepted(self, client: str, now: float) -> None:
        self._step(client, ACCEPTED, (ASKED, RECEIVED, FAILED), now)

    def rejected(self, client: str) -> None:
        self._step(client, REJECTED, (ASKED, RECEIVED, FAILED))

    def failed(self, client: str) -> None:
        self._step(client, FAILED, (ASKED,))

    def asked_again(self, client: str) -> None:
        self._step(client, ASKED, (FAILED,))

    def away(self, client: str, since: float) -> None:
        """An asked client has no stream, or was not heard of, since then. Told twice, it changes nothing."""
        if self._states.get(client) is ASKED and client not in self._away:
            self._absent(client, since)

    def back(self, client: str) -> None:
        self._away.pop(client, None)

    # --- what follows from it

    def state(self, client: str) -> ClientState | None:
        return self._states.get(client)

    def waiting_for(self) -> list[str]:
        """The clients that have not answered yet, by name."""
        return sorted(client for client, state in self._states.items() if state is ASKED)

    def lost(self, now: float) -> list[str]:
        """Clients that were away for `client_grace`: record them as failed.

        Each is named once. Recording may not succeed, so it is named again if it is still asked and away one
        `client_grace` (at least a second) later.
        """
        grace = self._config.client_grace
        gone = []
        while (since := self._longest_absence()) is not None and since + grace <= now:
            gone.append(self._by_absence[0][1])
            self._absent(gone[-1], now + max(0.0, 1.0 - grace))
        return sorted(gone)

    def decide(self, now: float) -> Wait | Close:
        """Once closed, it stays closed."""
        if self._closed is None:
            why = self._reason_to_close(now)
            if why is None:
                return Wait(self._next_look())
            self._closed = Close(why)
        return self._closed

    def verdict(self) -> Succeeded | Failed:
        """Of a round that is closed and whose received updates are all judged."""
        accepted = self._count[ACCEPTED]
        if accepted >= self._required:
            return Succeeded()
        noun = "update" if self._config.task is Kind.TRAINING else "answer"
        wanted = f"{self._required} required {noun}{'s' * (self._required > 1)}"
        return Failed(f"{accepted} of {wanted}{self._end()} ({self._tally()})")

    # --- how

    def _step(self, client: str, to: ClientState, allowed: tuple[ClientState, ...], now: float = 0.0) -> None:
        state = self._states.get(client)
        if state not in allowed or state is to:
            return
        self._count[state] -= 1
        self._count[to] += 1
        self._states[client] = to
        self._away.pop(client, None)
        if to is ACCEPTED:
            insort(self._accepted_at, now)

    def _reason_to_close(self, now: float) -> Why | None:
        count = self._count
        if count[ACCEPTED] >= self._goal:
            return Why.GOAL
        if count[ASKED] + count[RECEIVED] == 0:
            return Why.ANSWERED
        if count[ACCEPTED] + count[ASKED] + count[RECEIVED] < self._required:
            return Why.HOPELESS
        if now >= self._deadline:
            return Why.DEADLINE
        grace_end = self._grace_end()
        return Why.GRACE if grace_end is not None and now >= grace_end else None

    def _grace_end(self) -> float | None:
        if self._config.grace is None or len(self._accepted_at) < self._required:
            return None
        return self._accepted_at[self._required - 1] + self._config.grace

    def _next_look(self) -> float:
        since = self._longest_absence()
        lost_at = None if since is None else since + self._config.client_grace
        return min(at for at in (self._deadline, self._grace_end(), lost_at) if at is not None)

    def _absent(self, client: str, since: float) -> None:
        self._away[client] = since
        heapq.heappush(self._by_absence, (since, client))

    def _longest_absence(self) -> float | None:
        """The earliest start of an absence that still lasts; its client is at the top of the heap then."""
        heap = self._by_absence
        while heap and self._away.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def _end(self) -> str:
        why = self._closed.why if self._closed else Why.DEADLINE
        if why is Why.HOPELESS:
            return f", and {self._required} can no longer be reached"
        return " after every asked client had answered" if why is Why.ANSWERED else " at the deadline"

    def _tally(self) -> str:
        words = {
            ACCEPTED: "accepted",
            RECEIVED: "not judged",
            REJECTED: "rejected",
            FAILED: "failed",
            ASKED: "did not answer",
        }
        parts = [f"{self._count[state]} {word}" for state, word in words.items() if self._count[state]]
        return f"asked {len(self._states)}: {', '.join(parts)}" if parts else "asked nobody"


def _wanted(config: RoundConfig, asked: int) -> int:
    """The buffer is the aggregator's: a validation has none."""
    if config.task is Kind.TRAINING and config.buffer_size > 0:
        return config.buffer_size
    return min(config.clients_requested, asked)


def _why(text: str) -> Why:
    """A job that was closed by another version may say something else; only wording hangs on it."""
    return Why(text) if text in tuple(Why) else Why.DEADLINE


def too_few_clients(active: int, config: RoundConfig) -> Failed:
    """Why a round did not start."""
    waited = f" after {config.wait_for_clients:g} s" if config.wait_for_clients else ""
    return Failed(f"{active} of {config.clients_required} required clients active{waited}")
