"""Clients' answers on their way into the journal.

FEDn clients take an error as the end: an update that cannot be recorded now is held, not refused (promise 1).
The caller is answered when the journal has it, or after `hold_s`; from then on the answer waits here until
Redis and the store are back. Recorded in time it counts like any other; too late, its job lists the client as
unrecorded.

Bound: `limit` answers are on their way at once, with `limit_chars` of text in all. When a new one would be
too much, the oldest that nobody waits for any more is given up, or else the oldest of all; that is counted
and logged, and a caller who still waits is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from combiner.domain.types import Reason
from combiner.domain.updates import TaskRef, UpdateMeta
from combiner.ports import Received, Shared, StateUnavailable, Verdict
from combiner.rounds.meter import Meter
from fedcombiner.modelstorage.store import (
    ModelStore,
    ObjectDamaged,
    ObjectInfo,
    ObjectKey,
    StoreFull,
    StoreUnavailable,
)
from fedcombiner.servicekit.backoff import Backoff, retry
from fedcombiner.servicekit.errors import InvalidArgument

log = structlog.get_logger()

UPDATE_HOLD_S = 60.0
# Answers without an object behind them are small and safe in the buffer; their clients are let go sooner.
ANSWER_HOLD_S = 2.0
# The journal refuses longer answers, whatever follows here.
ANSWER_CHARS = 64 * 1024 + 1
BACKOFF = Backoff(initial=0.05, maximum=2.0)
T = TypeVar("T")
AWAY = (StateUnavailable, StoreUnavailable, StoreFull)


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


@dataclass(slots=True)
class _OnItsWay:
    """`let_go`: the client was told OK, or went away, before the record was made."""

    client: str
    chars: int
    let_go: bool = False


class Inbox:
    def __init__(
        self,
        shared: Shared,
        store: ModelStore,
        meter: Meter,
        *,
        limit: int = 10_000,
        limit_chars: int = 64 << 20,
        update_hold_s: float = UPDATE_HOLD_S,
        answer_hold_s: float = ANSWER_HOLD_S,
    ) -> None:
        self._shared = shared
        self._store = store
        self._meter = meter
        self._limit = limit
        self._limit_chars = limit_chars
        self._update_hold_s = update_hold_s
        self._answer_hold_s = answer_hold_s
        self._on_their_way: dict[asyncio.Task[None], _OnItsWay] = {}  # oldest first
        self._chars = 0
        self.given_up = 0

    def __len__(self) -> int:
        """Answers that are not recorded yet."""
        return len(self._on_their_way)

    async def update(self, message: UpdateMessage) -> None:
        """Returns when the update is recorded, or after `update_hold_s`.

        Never raises for a back end that is away.
        """
        answer = _OnItsWay(message.client, len(message.update_id))

        async def unrecorded() -> None:
            await self._add_unrecorded(message.client, message.task_id, message.meta.job_id)

        await self._deliver(answer, lambda: self._record_update(message), unrecorded, self._update_hold_s)

    async def answer(self, message: AnswerMessage) -> None:
        """Returns when the answer is recorded, or after `answer_hold_s`."""
        data = message.data[:ANSWER_CHARS]

        async def record() -> Received:
            return await self._shared.jobs.answer(
                client=message.client,
                task_id=message.task_id,
                job_id=message.job_id,
                model_id=message.model_id,
                data=data,
            )

        async def unrecorded() -> None:
            await self._add_unrecorded(message.client, message.task_id, message.job_id)

        await self._deliver(_OnItsWay(message.client, len(data)), record, unrecorded, self._answer_hold_s)

    async def failure(self, client: str, ref: TaskRef, detail: str) -> None:
        """The client says that it could not do a task."""

        async def record() -> Received:
            await self._shared.jobs.fail_client(
                client=client,
                task_id=ref.task_id,
                job_id=ref.job_id,
                reason=Reason.CLIENT_FAILED,
                detail=detail,
            )
            return Received(Verdict.RECEIVED)

        await self._deliver(_OnItsWay(client, len(detail)), record, None, self._answer_hold_s)

    async def _add_unrecorded(self, client: str, task_id: str, job_id: str) -> None:
        await self._shared.jobs.add_unrecorded(client=client, task_id=task_id, job_id=job_id)

    async def _record_update(self, message: UpdateMessage) -> Received:
        jobs = self._shared.jobs
        where = {"client": message.client, "task_id": message.task_id, "job_id": message.meta.job_id}
        if message.meta.problem:
            return await jobs.refuse(**where, reason=Reason.NUM_EXAMPLES, detail=message.meta.problem)
        info = await self._uploaded(message.update_id)
        if info is None:
            return await jobs.refuse(
                **where,
                reason=Reason.NOT_UPLOADED,
                detail=f"no complete upload named {message.update_id[:128]!r}",
                update_id=message.update_id[:128],
            )
        return await jobs.receive(
            **where,
            update_id=message.update_id,
            num_examples=message.meta.num_examples,
            empty=info.size == 0,
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

    async def _deliver(
        self,
        answer: _OnItsWay,
        record: Callable[[], Awaitable[Received]],
        unrecorded: Callable[[], Awaitable[None]] | None,
        hold_s: float,
    ) -> None:
        self._make_room(answer.chars)
        task = asyncio.create_task(
            self._until_recorded(answer, record, unrecorded), name=f"record answer of {answer.client}"
        )
        self._on_their_way[task] = answer
        self._chars += answer.chars
        task.add_done_callback(self._done)
        try:
            done, _ = await asyncio.wait([task], timeout=hold_s)
        except asyncio.CancelledError:
            answer.let_go = True
            raise
        if not done:
            answer.let_go = True
            log.warning("answer is confirmed but not recorded yet", client=answer.client, held_s=hold_s)

    async def _until_recorded(
        self,
        answer: _OnItsWay,
        record: Callable[[], Awaitable[Received]],
        unrecorded: Callable[[], Awaitable[None]] | None,
    ) -> None:
        received = await _until_back(record)
        if received.verdict is Verdict.REJECTED:
            log.info("answer rejected", reason=received.reason, job_id=received.job_id)
            if answer.let_go and received.reason == Reason.LATE and unrecorded is not None:
                await _until_back(unrecorded)
        self._meter.update(received.verdict, received.reason)

    def _done(self, task: asyncio.Task[None]) -> None:
        client = self._forget(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an answer could not be recorded", client=client, exc_info=error)

    def _forget(self, task: asyncio.Task[None]) -> str:
        """Whose answer it was; empty if it is forgotten already."""
        answer = self._on_their_way.pop(task, None)
        if answer is None:
            return ""
        self._chars -= answer.chars
        return answer.client

    def _make_room(self, chars: int) -> None:
        while self._on_their_way and not self._has_room(chars):
            let_go = (task for task, answer in self._on_their_way.items() if answer.let_go)
            oldest = next(let_go, next(iter(self._on_their_way)))
            oldest.cancel()
            self.given_up += 1
            log.error("answer given up: too many wait for a back end", client=self._forget(oldest))

    def _has_room(self, chars: int) -> bool:
        return len(self._on_their_way) < self._limit and self._chars + chars <= self._limit_chars

    async def settle(self, timeout: float) -> None:
        """Wait for what is on its way, at most `timeout` seconds."""
        if self._on_their_way:
            await asyncio.wait(set(self._on_their_way), timeout=timeout)

    async def close(self) -> None:
        """Give up what is still on its way: it is lost with the process."""
        tasks = set(self._on_their_way)
        for task in tasks:
            task.cancel()
        if tasks:
            log.error("answers are lost that could not be recorded in time", answers=len(tasks))
            await asyncio.wait(tasks)


async def _until_back(step: Callable[[], Awaitable[T]]) -> T:
    return await retry(step, on=AWAY, timeout=None, backoff=BACKOFF)
