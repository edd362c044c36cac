"""Clients' answers on their way into the journal.

FEDn clients take an error as the end: an update that cannot be recorded now is held, not refused (promise 1).
The caller is answered when the journal has it, or after `hold_s`; from then on the answer waits here until
Redis and the store are back. Recorded in time it counts like any other. If it is recorded too late, or was
dropped because too many waited, its job lists the client as unrecorded.

Updates and other answers wait apart, and clients that had a task lately apart from everybody else: anybody
can make up names, but not tasks. Each queue is bounded in all and for each client (`ReplayQueue` says what is
dropped). Listings as unrecorded wait in queues of the same kind.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Container, Iterator
from dataclasses import dataclass, replace
from typing import Final

import structlog

from combiner.clients.replay import Bounds, ReplayQueue
from combiner.domain.types import Reason
from combiner.domain.updates import TaskRef, UpdateMeta
from combiner.ports import Received, Shared, Verdict
from combiner.rounds.meter import Meter
from fedcombiner.modelstorage.store import ModelStore, ObjectDamaged, ObjectInfo, ObjectKey
from fedcombiner.servicekit.errors import InvalidArgument

log = structlog.get_logger()

UPDATE_HOLD_S: Final = 60.0
# Answers without an object behind them are small and safe in the buffer; their clients are let go sooner.
ANSWER_HOLD_S: Final = 2.0
# The journal refuses longer answers, whatever follows here.
ANSWER_CHARS: Final = 64 * 1024 + 1
ID_CHARS: Final = 128
OF_CLIENT: Final = 8  # a client trains for few jobs at once, and answers each once
UPDATES: Final = Bounds(entries=10_000, size=32 << 20, of_client=OF_CLIENT)
ANSWERS: Final = Bounds(entries=10_000, size=64 << 20, of_client=OF_CLIENT)
UNRECORDED: Final = Bounds(entries=10_000, size=32 << 20, of_client=OF_CLIENT)


@dataclass(frozen=True, slots=True)
class UpdateMessage:
    """A ModelUpdate, whatever generation sent it."""

    client: str
    update_id: str
    task_id: str  # correlation_id, or what the echoed task data says
    meta: UpdateMeta


@dataclass(frozen=True, slots=True)
class AnswerMessage:
    """A ModelValidation or ModelPrediction."""

    client: str
    task_id: str
    job_id: str
    model_id: str
    data: str


@dataclass(eq=False, slots=True)
class _Answer:
    """`confirmed`: its caller was told that all is well, or went away, before the journal had it."""

    client: str
    task_id: str
    job_id: str
    size: int
    record: Callable[[], Awaitable[Received]]
    listed: bool  # as unrecorded, if the journal cannot have it
    confirmed: bool = False


class _Queues:
    """One queue for clients that were asked, and one of half its size for everybody else."""

    def __init__(self, name: str, bounds: Bounds, asked: Container[str]) -> None:
        half = replace(bounds, entries=(bounds.entries + 1) // 2, size=bounds.size // 2)
        self._is_asked = asked
        self._of_asked = ReplayQueue(name, bounds)
        self._of_others = ReplayQueue(name, half)

    def __iter__(self) -> Iterator[ReplayQueue]:
        return iter((self._of_asked, self._of_others))

    def of(self, client: str) -> ReplayQueue:
        return self._of_asked if client in self._is_asked else self._of_others


class Inbox:
    def __init__(
        self,
        shared: Shared,
        store: ModelStore,
        meter: Meter,
        asked: Container[str],
        *,
        updates: Bounds = UPDATES,
        answers: Bounds = ANSWERS,
        unrecorded: Bounds = UNRECORDED,
        update_hold_s: float = UPDATE_HOLD_S,
        answer_hold_s: float = ANSWER_HOLD_S,
    ) -> None:
        self._jobs = shared.jobs
        self._store = store
        self._meter = meter
        self._update_hold_s = update_hold_s
        self._answer_hold_s = answer_hold_s
        self._updates = _Queues("record update", updates, asked)
        self._answers = _Queues("record answer", answers, asked)
        self._unrecorded = _Queues("list as unrecorded", unrecorded, asked)
        self._missing: set[tuple[str, str, str]] = set()  # whose listing is queued: client, task and job

    def __len__(self) -> int:
        """Answers that are not recorded yet."""
        return sum(map(len, (*self._updates, *self._answers)))

    @property
    def given_up(self) -> int:
        """Answers that were dropped because too many waited."""
        return sum(queue.dropped for queue in (*self._updates, *self._answers))

    async def update(self, message: UpdateMessage) -> None:
        """Returns when the update is recorded, or after `update_hold_s`.

        Never raises for a back end that is away.
        """
        task_id, meta = message.task_id, message.meta
        # One more character than an id may have is as invalid as many more.
        update_id = message.update_id[: ID_CHARS + 1]

        async def record() -> Received:
            return await self._record_update(message.client, task_id, update_id, meta)

        size = sum(map(sys.getsizeof, (message.client, task_id, update_id, meta.problem)))
        answer = _Answer(message.client, task_id, meta.job_id, size, record, listed=True)
        await self._deliver(self._updates, answer, self._update_hold_s)

    async def answer(self, message: AnswerMessage) -> None:
        """Returns when the answer is recorded, or after `answer_hold_s`."""
        client, task_id, job_id, model_id = message.client, message.task_id, message.job_id, message.model_id
        data = message.data[:ANSWER_CHARS]

        async def record() -> Received:
            return await self._jobs.answer(
                client=client, task_id=task_id, job_id=job_id, model_id=model_id, data=data
            )

        answer = _Answer(client, task_id, job_id, sys.getsizeof(data), record, listed=True)
        await self._deliver(self._answers, answer, self._answer_hold_s)

    async def failure(self, client: str, ref: TaskRef, detail: str) -> None:
        """The client says that it could not do a task."""

        async def record() -> Received:
            await self._jobs.fail_client(
                client=client,
                task_id=ref.task_id,
                job_id=ref.job_id,
                reason=Reason.CLIENT_FAILED,
                detail=detail,
            )
            return Received(Verdict.RECEIVED)

        answer = _Answer(client, ref.task_id, ref.job_id, sys.getsizeof(detail), record, listed=False)
        await self._deliver(self._answers, answer, self._answer_hold_s)

    async def _record_update(self, client: str, task_id: str, update_id: str, meta: UpdateMeta) -> Received:
        where = {"client": client, "task_id": task_id, "job_id": meta.job_id}
        if meta.problem:
            return await self._jobs.refuse(**where, reason=Reason.NUM_EXAMPLES, detail=meta.problem)
        info = await self._uploaded(update_id)
        if info is None:
            shown = update_id[:ID_CHARS]
            return await self._jobs.refuse(
                **where,
                reason=Reason.NOT_UPLOADED,
                detail=f"no complete upload named {shown!r}",
                update_id=shown,
            )
        return await self._jobs.receive(
            **where, update_id=update_id, num_examples=meta.num_examples, empty=info.size == 0
        )

    async def _uploaded(self, update_id: str) -> ObjectInfo | None:
        try:
            key = ObjectKey("uploads", update_id)
        except InvalidArgument:
            return None
        try:
            return await self._store.head(key)
        except ObjectDamaged:
            return None

    async def _deliver(self, queues: _Queues, answer: _Answer, hold_s: float) -> None:
        done = queues.of(answer.client).put(
            answer.client,
            answer.size,
            lambda: self._record(answer),
            dropped=lambda: self._list_unrecorded(answer),
        )
        try:
            finished, _ = await asyncio.wait([done], timeout=hold_s)
        except asyncio.CancelledError:
            answer.confirmed = True
            raise
        if not finished:
            answer.confirmed = True
            log.warning("answer is confirmed but not recorded yet", client=answer.client, held_s=hold_s)

    async def _record(self, answer: _Answer) -> None:
        received = await answer.record()
        if received.verdict is Verdict.REJECTED:
            log.info("answer rejected", reason=received.reason, job_id=received.job_id)
            if answer.confirmed and received.reason == Reason.LATE:
                self._list_unrecorded(answer)
        self._meter.update(received.verdict, received.reason)

    def _list_unrecorded(self, answer: _Answer) -> None:
        client, task_id, job_id = missing = (answer.client, answer.task_id, answer.job_id)
        if not answer.listed or missing in self._missing:
            return

        async def listed() -> None:
            await self._jobs.add_unrecorded(client=client, task_id=task_id, job_id=job_id)

        self._missing.add(missing)
        size = sum(map(sys.getsizeof, missing))
        done = self._unrecorded.of(client).put(client, size, listed, dropped=lambda: None)
        done.add_done_callback(lambda _: self._missing.discard(missing))

    async def settle(self, timeout: float) -> None:
        """Wait for what is on its way, at most `timeout` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        # The last ones hold what becomes of the others.
        for queue in (*self._updates, *self._answers, *self._unrecorded):
            await queue.settle(max(0.0, deadline - loop.time()))

    async def close(self) -> None:
        """Give up what is still on its way: it is lost with the process."""
        lost = sum([await queue.close() for queue in (*self._updates, *self._answers)])
        for queue in self._unrecorded:
            await queue.close()
        if lost:
            log.error("answers are lost that could not be recorded in time", answers=lost)
