"""The words of the combiner: jobs, rounds, sessions, models, clients. Plain values, no behaviour that needs
a clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

ANSWERS_AT_ONCE: Final = 16  # of at most 64 KiB each: a portion is about a MiB


class Kind(StrEnum):
    TRAINING = "training"
    VALIDATION = "validation"
    INFERENCE = "inference"


class State(StrEnum):
    """Of jobs and sessions. States only move forward."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class Phase(StrEnum):
    """What a running job does now."""

    WAITING = "waiting"  # for enough active clients
    COLLECTING = "collecting"  # clients were asked, answers come in
    AGGREGATING = "aggregating"  # closed: the last updates are checked, the aggregate is written


class ClientState(StrEnum):
    """Of one asked client in one job."""

    ASKED = "asked"
    RECEIVED = "received"  # the bytes are durable and the journal knows
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    FAILED = "failed"


class Reason(StrEnum):
    """Why an update was rejected or a client failed. Stable words: people and programs read them."""

    NOT_ASKED = "not_asked"
    DUPLICATE = "duplicate"
    LATE = "late"
    NOT_UPLOADED = "not_uploaded"
    NOT_A_MODEL = "not_a_model"
    NON_FINITE = "non_finite"
    SHAPE = "shape"
    NAMES = "names"
    DTYPE = "dtype"
    NUM_EXAMPLES = "num_examples"
    TOO_LARGE = "too_large"
    NO_ROOM = "no_room"  # for one more answer to the same job
    # failures of clients
    CLIENT_FAILED = "client_failed"  # it said so: a WARNING status
    EMPTY_UPLOAD = "empty_upload"  # FEDn's other way to say so
    CLIENT_LOST = "client_lost"  # its stream or its heartbeats stayed away


class LeftOut(StrEnum):
    """Why an active client cannot take part. Stable words, as `Reason`."""

    FORMAT = "format"
    TASK = "task"


@dataclass(frozen=True, slots=True)
class Outcome:
    client: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """One asked client in the journal of a job."""

    client: str
    state: ClientState
    task_id: str
    update_id: str = ""
    num_examples: int = 0
    reason: str = ""
    detail: str = ""
    at_ms: int = 0  # when it took this state


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the journal has it. Times are milliseconds by the clock of Redis; 0 means not yet."""

    job_id: str
    session_id: str
    kind: Kind
    state: State
    reason: str
    round_id: str
    model_id: str
    parent_model_id: str
    config: Mapping[str, str]
    phase: str
    version: int
    created_ms: int
    started_ms: int = 0
    ended_ms: int = 0
    deadline_ms: int = 0
    closed: bool = False
    closed_why: str = ""  # as `Jobs.close` was told
    clients: Mapping[str, ClientRecord] = field(default_factory=dict)
    others: tuple[Outcome, ...] = ()  # answers of clients that were not asked, came late or twice; bounded
    unrecorded: tuple[str, ...] = ()
    metrics: Mapping[str, float] | None = None  # means of a validation, once it has ended
    timings: Mapping[str, float] = field(default_factory=dict)  # seconds
    owners_died: int = 0  # in a row, without progress in between
    format: str = ""  # of the model that it trains, once clients were asked
    left_out: tuple[Outcome, ...] = ()  # active clients that could not take part; bounded

    def of_state(self, *states: ClientState) -> list[ClientRecord]:
        """The asked clients in one of these states, by name."""
        return [self.clients[name] for name in sorted(self.clients) if self.clients[name].state in states]

    @property
    def answered(self) -> list[str]:
        """The clients whose answers to a validation or inference are kept, by name."""
        if self.kind is Kind.TRAINING:
            return []
        return [record.client for record in self.of_state(ClientState.ACCEPTED)]

    def answer_pages(self) -> Iterator[list[str]]:
        """`answered`, in portions whose answers can be read at once."""
        clients = self.answered
        for start in range(0, len(clients), ANSWERS_AT_ONCE):
            yield clients[start : start + ANSWERS_AT_ONCE]


@dataclass(frozen=True, slots=True)
class NewJob:
    job_id: str
    session_id: str
    kind: Kind
    round_id: str
    parent_model_id: str
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Model:
    """A registered model: its bytes are `models/<model_id>` in the store."""

    model_id: str
    parent_model_id: str = ""
    session_id: str = ""
    round_id: str = ""
    job_id: str = ""
    size: int = 0
    sha256: str = ""
    created_ms: int = 0
    updates: int = 0
    num_examples: int = 0
    name: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    client_metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RoundResult:
    """One tried round of a session."""

    round_id: str
    job_id: str
    state: State
    reason: str = ""
    model_id: str = ""
    validation_job_id: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    accepted: int = 0
    started_ms: int = 0
    ended_ms: int = 0


@dataclass(frozen=True, slots=True)
class Session:
    """`results` are those of the round under way; the ones before it are counted here, and read with
    `ports.Sessions.earlier`.
    """

    session_id: str
    state: State
    reason: str
    seed_model_id: str
    model_id: str
    config: Mapping[str, str]
    round: int = 0  # the round that is tried now, from 1; 0 before the first
    failed_in_a_row: int = 0
    current_job_id: str = ""
    results: tuple[RoundResult, ...] = ()
    earlier_done: int = 0
    earlier_failed: int = 0
    version: int = 0
    created_ms: int = 0
    started_ms: int = 0
    ended_ms: int = 0

    @property
    def earlier(self) -> int:
        """How many results there are before `results`."""
        return self.earlier_done + self.earlier_failed

    @property
    def rounds_done(self) -> int:
        return self.earlier_done + sum(r.state is State.SUCCEEDED for r in self.results)

    @property
    def failed_rounds(self) -> int:
        return self.earlier_failed + sum(r.state is not State.SUCCEEDED for r in self.results)


@dataclass(frozen=True, slots=True)
class Presence:
    """What the roster knows of a client. `cut`: our side ended its last stream; it has opened none since."""

    client: str
    seen_ms_ago: int  # -1: never
    trainer_streams: int = 0
    validator_streams: int = 0
    era: str = ""
    cut: bool = False
    name: str = ""  # of a client that is known by an id

    @property
    def streams(self) -> int:
        return max(self.trainer_streams, self.validator_streams)
