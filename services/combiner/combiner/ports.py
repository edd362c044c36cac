"""What the rounds and the servicers need from the state that all replicas share.

One adapter exists, over Redis (`combiner.adapters`); tests and fault injection wrap it. Every method is one
atomic step: it either happened as a whole or not at all. Methods raise `StateUnavailable` while Redis is away
(the step may or may not have happened; every step can safely be asked for again), and those that take a
`Lease` raise `LeaseLost` when another replica owns the work by now, or `Ended` when the job or session has
ended meanwhile (cancelled, for instance).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from combiner.domain.metrics import Figures
from combiner.domain.types import (
    ClientRecord,
    ClientState,
    Job,
    Kind,
    Model,
    NewJob,
    Outcome,
    Presence,
    RoundResult,
    Session,
    State,
)


class StateUnavailable(Exception):
    """Redis does not answer."""


class LeaseLost(Exception):
    """Another replica owns this job or session now."""


class SchemaTooNew(StateUnavailable):
    """The state in Redis was written by a newer version; this one must not touch it.

    To this process it is away for good: clients' answers are held until the gateway takes them elsewhere.
    """


class StateFull(StateUnavailable):
    """Redis has no room for anything new; what runs goes on to its end."""


class QueueFull(Exception):
    """So many jobs or sessions are queued that one more is refused."""


class NotEmpty(Exception):
    """There is something where a backup was to be restored."""


class Unreadable(Exception):
    """A record of a backup is not as this version knows it."""


class Ended(Exception):
    """The job or session has ended (cancelled, for instance); nothing may be written to it any more."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of this process to work on a job or session. `work` is `job:<id>` or `session:<id>`."""

    work: str
    token: int

    @property
    def id(self) -> str:
        return self.work.partition(":")[2]


@dataclass(frozen=True, slots=True)
class LeaseView:
    """A lease as anyone can see it. `beat` changes with every renewal; an empty owner means released."""

    work: str  # also `replica:<id>`: the life of a replica
    owner: str
    token: int
    beat: int


@dataclass(frozen=True, slots=True)
class JobBrief:
    """A job without its clients."""

    job_id: str
    state: State
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ask:
    client: str
    task_id: str


@dataclass(frozen=True, slots=True)
class Task:
    """One request to one client, as a stream delivers it.

    `data` is JSON text, `raw` a ready message of SendModelUpdateRequest.
    """

    task_id: str
    client: str
    kind: Kind
    job_id: str
    session_id: str
    model_id: str
    data: str
    raw: bytes = b""


class Verdict(StrEnum):
    """What became of an answer."""

    RECEIVED = "received"
    REPEATED = "repeated"  # the very same answer was received before: nothing to do, all is well
    REJECTED = "rejected"  # with a reason, listed in its job (if it has one)


@dataclass(frozen=True, slots=True)
class Received:
    verdict: Verdict
    job_id: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the log that all replicas follow. `what` is a word of docs/jobs.md."""

    seq: str
    what: str
    job_id: str = ""
    session_id: str = ""
    state: str = ""
    client: str = ""
    reason: str = ""
    at_ms: int = 0
    asked: int = 0
    accepted: int = 0
    rejected: int = 0
    failed: int = 0
    version: int = 0
    clients: tuple[str, ...] = ()  # of `tasks`: whose queues have something to deliver; else who came or went
    kind: str = ""
    round_id: str = ""
    text: str = ""  # of `status`
    record: ClientRecord | None = None  # of `received`: the client's, as it is then


class Jobs(Protocol):
    """The journal of jobs. Every change adds an `Event` to the log in the same atomic step."""

    async def submit(self, job: NewJob) -> Job:
        """Append to the queue.

        An id that exists already is answered with the job that is there. Raises QueueFull.
        """

    async def get(self, job_id: str) -> Job | None: ...

    def list(self, *, session_id: str = "", limit: int = 1000) -> AsyncIterator[Job]:
        """The newest `limit` jobs, oldest first."""

    async def unended(self) -> Sequence[str]:
        """Ids of the running jobs, then of the queued ones in their order."""

    async def claim(self, replica: str) -> Lease | None:
        """Take the next queued job, if fewer than the allowed number run: it runs then, phase waiting."""

    async def open(
        self,
        lease: Lease,
        asks: Sequence[Ask],
        timeout_ms: int,
        task_data: str,
        *,
        format: str = "",
        left_out: Sequence[Outcome] = (),
    ) -> Job:
        """Record who is asked and the deadline (Redis time + timeout), and put one task in the queue of each.

        Only the first call counts; a later one (after a crash) changes nothing. `task_data` is the JSON
        object that each task carries; the adapter adds `_task_id` to it for each client when the task is
        delivered. `format` is that of the model; `left_out` are active clients that cannot take part.
        """

    async def receive(
        self, *, client: str, task_id: str, job_id: str, update_id: str, num_examples: int, empty: bool
    ) -> Received:
        """An update's bytes are durable: record it, and take its task from the queue.

        The task is found by `task_id`, or (both empty ids allowed) by (client, job_id). Not found or another
        client's: `not_asked`. This very update of this client was received for this job before: REPEATED,
        whatever became of it. Job closed or ended: `late`. This client answered this job before with another
        update, or said that it failed: `duplicate`. The object `update_id` was received before, from another
        client or for another job: the client is REJECTED, `duplicate`. `empty`: a 0-byte upload: the client
        failed, reason `empty_upload` (verdict RECEIVED). A client that was failed as `client_lost` and
        answers while the job is open is taken back.
        """

    async def refuse(
        self, *, client: str, task_id: str, job_id: str, reason: str, detail: str, update_id: str = ""
    ) -> Received:
        """Like `receive`, for an answer that is known to be no good (not_uploaded, num_examples): the client
        is REJECTED. REPEATED if `update_id` was received from it before: its object may be gone by now.
        """

    async def answer(self, *, client: str, task_id: str, job_id: str, model_id: str, data: str) -> Received:
        """The answer to a validation or inference task (no update): recorded once; the client is ACCEPTED.
        REJECTED, `no_room`: the answers to this job take their part of Redis's memory already.

        `model_id` helps to find the task when the client echoes neither id: the open task of this client on
        this model.
        """

    async def answers(self, job_id: str, clients: Sequence[str]) -> Mapping[str, str]:
        """Client -> JSON, of those of the clients whose answer is kept.

        One call reads all of them at once: ask for a portion of `Job.answer_pages`.
        """

    async def accept(self, lease: Lease, client: str, *, folded: int = 0) -> None:
        """A RECEIVED update is good. Idempotent; Conflict if the client is in any other state.

        `folded`: how many updates this owner has folded by now. That is the progress of a training job.
        """

    async def reject(self, lease: Lease, client: str, reason: str, detail: str) -> None:
        """A RECEIVED update is no good, or an ACCEPTED one is to be taken back.

        Idempotent; Conflict in any other state.
        """

    async def fail_client(self, *, client: str, task_id: str, job_id: str, reason: str, detail: str) -> bool:
        """The client will not answer.

        Only an ASKED one changes; its task leaves the queue. True if it changed.
        """

    async def ask_again(self, lease: Lease, client: str, task_id: str) -> bool:
        """A client that FAILED as `client_failed` is ASKED again, by a new task in its queue.

        Idempotent by the task's id. False, and nothing happens: the job is closed, the client is in any other
        state, or it was asked `max_deliveries` times.
        """

    async def close(self, lease: Lease, why: str, version: int = 0) -> Job:
        """No answer is received any more from here on. Open tasks leave the queues. Idempotent.

        Conflict if the job is not at `version` yet: what it was decided by is not in the journal any more,
        because Redis failed over to a replica that lagged.
        """

    async def commit(self, lease: Lease, model: Model, timings: Mapping[str, float]) -> None:
        """The one step that makes the aggregate the job's model: registers it and ends the job SUCCEEDED.

        Idempotent for the lease that did it. Conflict if the job is not closed, or a received update neither
        accepted nor rejected.
        """

    async def end(
        self,
        lease: Lease,
        state: State,
        reason: str,
        *,
        timings: Mapping[str, float] | None = None,
        figures: Figures | None = None,
    ) -> None:
        """End without a model.

        Idempotent for the lease that did it. `figures` of a validation are recorded at the parent model, and
        their means with the job.
        """

    async def cancel(self, job_id: str, reason: str) -> Job | None:
        """End a queued or running job as CANCELLED, at once. An ended one stays as it is."""

    async def add_unrecorded(self, *, client: str, task_id: str, job_id: str) -> None:
        """An answer that was confirmed, but was dropped or could not be recorded in time (promise 1)."""

    async def counts(self) -> Mapping[str, int]:
        """Jobs by state: QUEUED and RUNNING."""

    async def of_updates(self, update_ids: Sequence[str]) -> Mapping[str, JobBrief]:
        """Update id -> the job that received it, for those that a job known here received."""


class Sessions(Protocol):
    async def start(self, session: Session) -> Session:
        """Append to the queue; an id that exists is answered with the session that is there.

        Raises QueueFull.
        """

    async def get(self, session_id: str) -> Session | None: ...

    def list(self, *, limit: int = 1000) -> AsyncIterator[Session]: ...

    def earlier(self, session: Session, start: int = 0) -> AsyncIterator[Sequence[RoundResult]]:
        """The `session.earlier` results before `session.results`, from number `start` on, in portions."""

    async def unended(self) -> Sequence[str]:
        """Ids of the running sessions, then of the queued ones in their order."""

    async def claim(self, replica: str) -> Lease | None: ...

    async def advance(
        self, lease: Lease, session: Session, job: NewJob | None, finished: Job | None = None
    ) -> Session:
        """Replace the session by `session` if it is still at `session.version`, and submit `job` in the same
        step.

        Returns the session with its new version. If the version differs, or `finished`, the job that this
        follows from, has not ended so any more (a failover of Redis took its end back), nothing happens and
        `Conflict` is raised. An ended state releases the lease and wakes the next session.
        """

    async def cancel(self, session_id: str, reason: str) -> Session | None:
        """Ends the session and its current job, at once."""


class Conflict(Exception):
    """The record changed meanwhile; read it again."""


class Models(Protocol):
    async def register(self, model: Model) -> Model:
        """An id that is registered already keeps its first record.

        Conflict if its object is being removed.
        """

    async def get(self, model_id: str) -> Model | None: ...

    async def found(self, models: Sequence[Model]) -> None:
        """Register what the store holds after Redis was lost. None becomes the newest: nobody knows."""

    async def is_complete(self) -> bool:
        """Whether this Redis was told of all models that the store had when it was new."""

    async def mark_complete(self) -> None: ...

    async def newest(self) -> Model | None:
        """The newest global model: the last one that a job committed, else the last one put."""

    def list(self, *, session_id: str = "", limit: int = 1000) -> AsyncIterator[Model]: ...

    async def in_use(self) -> set[str]:
        """The newest models, and those of jobs and sessions that have not ended."""

    async def forget(self, ids: Sequence[str]) -> Sequence[str]:
        """Remove records, but of no model in use. Returns whose object is to be removed next.

        A crash before that leaves an object that no record names, never a record without its object. For an
        hour such an id cannot be registered again: see `condemn`.
        """

    async def unregistered(self, ids: Sequence[str]) -> Sequence[str]:
        """Those of the ids that are no registered models. None while this Redis is not `is_complete`."""

    async def condemn(self, ids: Sequence[str]) -> Sequence[str]:
        """Those that are `unregistered`, and cannot be registered for an hour from now on.

        Whoever would register it meanwhile gets Conflict: so an object without a record can be removed.
        """


class View(StrEnum):
    """Which tasks a stream shows: ModelUpdateRequestStream, ModelValidationRequestStream, TaskStream."""

    TRAINING = "training"
    VALIDATION = "validation"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Stream:
    stream_id: str  # unique; starts with the replica's id and a colon
    client: str
    view: View
    era: str
    name: str = ""  # by which it may answer, too: FEDn's clients have an id and a name, and use either


@dataclass(frozen=True, slots=True)
class StreamChange:
    """A stream was opened, or closed (by us: our side cut it)."""

    stream: Stream
    opened: bool
    by_us: bool = False


class Roster(Protocol):
    """Who is there. Times are taken from Redis, never from this process."""

    async def beat(self, clients: Mapping[str, str]) -> None:
        """client -> era: all of these were heard of just now."""

    async def opened(self, stream: Stream) -> None:
        """Also counts as a beat. Adds a `client` event if somebody waits for clients."""

    async def closed(self, stream: Stream, *, by_us: bool) -> None:
        """Tasks delivered to it go back to the queue; a delivery that our side cut is not counted.

        A task that was delivered `max_deliveries` times fails its client as client_lost.
        """

    async def change(self, changes: Sequence[StreamChange]) -> None:
        """What `opened` and `closed` do, for many streams in order, in one step. A few hundred at once."""

    async def active(self, view: View) -> list[str]:
        """Clients with a stream that shows such tasks, heard of within the client window; sorted by name."""

    async def presence(self, clients: Sequence[str]) -> list[Presence]: ...

    def list(self, *, all: bool = False) -> AsyncIterator[Presence]: ...

    async def want_clients(self, job_id: str, wanted: bool) -> None:
        """While somebody wants clients, `opened` adds `client` events to the log."""

    async def forget_replica(self, replica: str) -> None:
        """A dead replica's streams are closed as if our side had cut them. Idempotent."""


class Tasks(Protocol):
    async def claim(self, streams: Sequence[Stream]) -> list[tuple[Stream, Task]]:
        """Hand out every queued task of these streams' clients, each to one stream that may show it. Counts a
        delivery.

        Nothing is handed to a stream that is not `opened`, or closed. After `StateUnavailable` ask again for
        the same streams: what had been handed to them in a reply that was lost is in the next one, as the
        same delivery.
        """

    async def put_raw(self, *, client: str, kind: Kind, task_id: str, raw: bytes) -> bool:
        """A message of SendModelUpdateRequest for `client`, without a job.

        At most 100 a client: the oldest goes. False: no such client.
        """


class Leases(Protocol):
    async def renew(self, replica: str, leases: Sequence[Lease]) -> tuple[list[Lease], list[LeaseView]]:
        """Renew these and the replica's own life. Returns those that were lost, and all leases as they are
        now.

        A view whose owner is `replica` but which it does not hold is of a `claim` or `take_over` whose reply
        was lost: take it over. A replica that lives but was forgotten (`forget_replica`) learns it from a
        `resync` event, after its next renewal.
        """

    async def take_over(self, seen: LeaseView, replica: str) -> Lease | None:
        """Take work whose lease is still exactly as seen (same token, same beat).

        If that was another replica's, which did not release it, the owner of the job counts as dead: see
        `Job.owners_died`.
        """

    async def views(self) -> list[LeaseView]:
        """All leases as they are now."""

    async def release(self, lease: Lease) -> None:
        """Give the work back to whoever wants it now (drain); adds a `released` event.

        Of `replica:<id>`: it goes away for good.
        """


class Log(Protocol):
    def follow(self) -> AsyncIterator[Event]:
        """Every event from now on, in order; reconnects by itself and misses none.

        The first event is `resync`: from here on nothing is missed, so read what you watch. It comes again
        when events were missed all the same: the log was trimmed past our place, or lost with Redis's memory.
        """

    async def statuses(self, entries: Sequence[Mapping[str, str]]) -> None:
        """Append clients' status messages to a bounded stream: `client`, `level`, `status` and `type`."""

    async def now_ms(self) -> int:
        """Redis's clock; also tells whether Redis answers."""


@dataclass(frozen=True, slots=True)
class Expired:
    """What retention (docs/state.md) no longer keeps, by their ids, the oldest first."""

    jobs: Sequence[str]
    sessions: Sequence[str]
    clients: Sequence[str]

    def __bool__(self) -> bool:
        return bool(self.jobs or self.sessions or self.clients)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that Redis uses and may use (0: no limit), and what was done about it since the state began."""

    used: int
    maximum: int
    removed_early: int  # jobs and sessions that had ended, for want of memory
    names_refused: int  # of clients, beyond what the roster holds

    @property
    def part(self) -> float:
        """Part of the maximum that is used; 0 without one."""
        return self.used / self.maximum if self.maximum else 0.0


class Upkeep(Protocol):
    """House-keeping: what of the shared state can go, and which replica sees to it."""

    async def born_ms(self) -> int:
        """Since when this state is kept. What is older it may have known and lost, with Redis's memory."""

    async def expired(self, most: int) -> Expired:
        """What `purge` would remove: at most so many of each kind."""

    async def purge(self, most: int) -> Expired: ...

    async def memory(self) -> Memory: ...

    async def begin(self, replica: str, *, hold_ms: int, every_ms: int) -> int:
        """0: house-keeping is due, and this replica's for `hold_ms`; ask again to hold it longer.

        Else after how many milliseconds to ask again: it is not due yet, or another replica's.
        """

    async def done(self, replica: str, *, every_ms: int) -> None:
        """Give it back; it is due again in `every_ms`."""


class Archive(Protocol):
    """The records worth keeping: settings, sessions, jobs, models. Not who is there, no events, no leases."""

    schema: int
    """The layout that records are of."""

    def dump(self) -> AsyncIterator[Mapping[str, Any]]:
        """Every record as JSON can hold it, with a `kind`: settings, newest, then sessions, jobs and models,
        of each the oldest first. `results` and `answers` are parts of the session or job before them.
        """

    async def begin(self, *, replace: bool) -> None:
        """Make room for records: with `replace` everything that is there goes.

        Raises:
            NotEmpty: something is there, and is not to be replaced.
            Conflict: jobs or sessions have not ended. Nothing is changed.
        """

    async def put(self, record: Mapping[str, Any]) -> bool:
        """Put a session, job or model back, or a part of one; False if its id is there already.

        Models first, then jobs, then sessions, each after its parts: what has not ended goes on at once.
        Raises Unreadable.
        """

    async def finish(self, *, committed: str, put: str) -> None:
        """The newest models, and a `resync` event for everybody."""


@dataclass(frozen=True, slots=True)
class Place:
    """How far somebody has read what happened: the last entry of the log, and the last status message."""

    entry: str = "0-0"
    status: str = "0-0"


class History(Protocol):
    """What happened, for people who look on: the log of changes and clients' status messages (`status`
    events, their level as the reason), in the order of Redis's clock.

    Nothing is fanned out: a reader who follows has a connection of its own, so there are to be few.
    """

    async def recent(self, limit: int, wanted: Callable[[Event], bool]) -> tuple[list[Event], Place]:
        """The last `limit` wanted events that are still known, oldest first, and the place behind them."""

    def follow(self, place: Place) -> AsyncGenerator[tuple[Event, Place], None]:
        """Every event behind `place`, each with its own place, without end.

        A `resync` event stands for those that are no longer known.
        """


class ReportKind(StrEnum):
    METRIC = "metric"
    TELEMETRY = "telemetry"
    ATTRIBUTE = "attribute"


@dataclass(frozen=True, slots=True)
class Report:
    """What a client tells beside its answers. Where it says no session, round or model, any fits."""

    client: str
    kind: ReportKind
    values: Mapping[str, str]  # of metrics and telemetry: finite numbers
    session_id: str = ""
    round_id: str = ""
    model_id: str = ""


@dataclass(frozen=True, slots=True)
class Reported:
    """The last value of each name."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    telemetry: Mapping[str, float] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)


class Reports(Protocol):
    async def add(self, reports: Sequence[Report]) -> None:
        """Keep them with their client, and metrics and telemetry with the job that it works on (metrics: or
        worked on last). More names than `max_told` are not kept.
        """

    async def of_clients(self, clients: Sequence[str]) -> list[Reported]: ...

    async def of_jobs(self, job_ids: Sequence[str]) -> list[Mapping[str, Reported]]:
        """Client -> what it told while it worked on that job; empty for a job that is gone."""


class Settings(Protocol):
    """What `Control.Configure` may change: one table for all replicas."""

    async def get(self) -> Mapping[str, str]: ...

    async def put(self, values: Mapping[str, str]) -> None:
        """Adds a `settings` event."""


class Shared(Protocol):
    """All of the shared state."""

    jobs: Jobs
    sessions: Sessions
    models: Models
    roster: Roster
    tasks: Tasks
    leases: Leases
    log: Log
    history: History
    reports: Reports
    settings: Settings
    upkeep: Upkeep
    archive: Archive


def outcomes(job: Job) -> tuple[list[Outcome], list[Outcome]]:
    """Rejected and failed, as they are shown: asked clients first, by name, then the others."""
    rejected = [Outcome(r.client, r.reason, r.detail) for r in job.of_state(ClientState.REJECTED)]
    failed = [Outcome(r.client, r.reason, r.detail) for r in job.of_state(ClientState.FAILED)]
    return rejected + list(job.others), failed
