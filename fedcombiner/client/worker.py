"""Doing a client's tasks, one at a time, and answering each exactly once."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final, NoReturn, TypeVar

from fedcombiner.client.errors import is_final, rpc_errors
from fedcombiner.client.link import Link
from fedcombiner.client.messages import Messages, Task, Timings
from fedcombiner.client.transfer import Sink, download, upload
from fedcombiner.client.workload import Update, Workload
from fedcombiner.servicekit.backoff import Backoff
from fedcombiner.servicekit.errors import ServiceError
from fedcombiner.wire.eras import TRAINING
from fedcombiner.wire.pb import fedn_pb2

logger = logging.getLogger(__name__)

T = TypeVar("T")
Answer = fedn_pb2.ModelUpdate | fedn_pb2.ModelValidation
Outcome = Answer | fedn_pb2.Status

INBOX_SIZE: Final = 100
_REMEMBERED: Final = 1_000  # answers; by then the round of the oldest is long over
_STATUS_TIMEOUT: Final = 5.0  # seconds
# The server holds an update for up to 60 s while it cannot record it, and then answers.
_ANSWER_TIMEOUT: Final = 120.0
_LIMIT: Final = 3_600.0  # seconds
_BACKOFF: Final = Backoff(0.2, 5.0)


class Worker:
    """The tasks of one client.

    The inbox holds at most `INBOX_SIZE` tasks; when it is full, `deliver` waits, so that the stream is not
    read and the rest stays at the server.

    Args:
        link: gives the connection of the moment; waits while there is none. Asked for anew with every
            attempt, as the client may have joined elsewhere meanwhile.
    """

    def __init__(self, messages: Messages, workload: Workload, link: Callable[[], Awaitable[Link]]) -> None:
        self._messages = messages
        self._workload = workload
        self._link = link
        self._inbox: asyncio.Queue[Task] = asyncio.Queue(INBOX_SIZE)
        self._open: set[str] = set()  # in the inbox or being worked on
        self._answers: OrderedDict[str, Answer] = OrderedDict()

    async def deliver(self, task: Task) -> None:
        """Take a task. One that is being worked on is dropped: its answer will come."""
        if task.id in self._open:
            return
        if task.id:
            self._open.add(task.id)
        try:
            await self._inbox.put(task)
        except asyncio.CancelledError:
            self._open.discard(task.id)
            raise

    async def run(self) -> NoReturn:
        """Do tasks until cancelled."""
        while True:
            task = await self._inbox.get()
            outcome = self._answers.get(task.id) or await self._work(task)
            # From here on the task comes again only if the server wants to hear the outcome again.
            self._open.discard(task.id)
            try:
                await self._report(task, outcome)
            except ServiceError as error:
                logger.warning("%s: task %s not answered: %s", self._messages.name, task.id, error)

    async def _work(self, task: Task) -> Outcome:
        """The answer to a task, or the status that says that it failed."""
        await self._tell(self._messages.received(task))
        await self._tell(self._messages.started(task))
        try:
            return await (self._train(task) if task.kind == TRAINING else self._validate(task))
        except Exception as error:  # whatever users' code raises is the end of this task only
            logger.warning("%s: task %s failed", self._messages.name, task.id, exc_info=True)
            # The class alone: the text of an error may quote data, which must not leave this machine.
            return self._messages.failed(task, type(error).__name__)

    async def _report(self, task: Task, outcome: Outcome) -> None:
        if isinstance(outcome, fedn_pb2.Status):
            await self._until_answered(partial(self._send_status, outcome))
            return
        self._remember(task, outcome)
        await self._until_answered(partial(self._send, outcome))
        await self._tell(self._messages.completed(task, outcome))

    async def _train(self, task: Task) -> Answer:
        fetch = _Timed(partial(self._fetch, task))
        began = time.monotonic()
        update = await self._workload.train(task, fetch)
        trained = time.monotonic()
        if isinstance(update.num_examples, bool) or int(update.num_examples) != update.num_examples:
            raise ValueError("the number of examples is not a whole number")
        update_id = str(uuid.uuid4())
        await self._until_answered(partial(self._upload, update_id, update))
        ended = time.monotonic()
        timings = Timings(fetch.seconds, trained - began - fetch.seconds, ended - trained, ended - began)
        return self._messages.update(task, update_id, int(update.num_examples), update.metrics, timings)

    async def _validate(self, task: Task) -> Answer:
        metrics = await self._workload.validate(task, partial(self._fetch, task))
        return self._messages.validation(task, metrics)

    async def _fetch(self, task: Task, target: Path | Sink) -> int:
        return await self._until_answered(lambda link: download(link, task.model_id, target))

    async def _upload(self, update_id: str, update: Update, link: Link) -> None:
        await upload(link, update_id, update.source)

    async def _send(self, answer: Answer, link: Link) -> None:
        if isinstance(answer, fedn_pb2.ModelUpdate):
            await link.combiner.SendModelUpdate(answer, timeout=_ANSWER_TIMEOUT)
        else:
            await link.combiner.SendModelValidation(answer, timeout=_ANSWER_TIMEOUT)

    async def _send_status(self, status: fedn_pb2.Status, link: Link) -> None:
        await link.connector.SendStatus(status, timeout=_STATUS_TIMEOUT)

    async def _tell(self, status: fedn_pb2.Status) -> None:
        """Send a status once: it is for people to read, and no task waits for it."""
        try:
            with rpc_errors():
                await self._send_status(status, await self._link())
        except ServiceError as error:
            logger.info("%s: status not sent: %s", self._messages.name, error)

    async def _until_answered(self, step: Callable[[Link], Awaitable[T]]) -> T:
        """The result of a step that may safely be repeated, as soon as the server is there for it.

        Raises:
            ServiceError: the server's answer is final, or an hour has passed. A server that still wants this
                task asks again, and gets the same answer.
        """
        give_up_at = time.monotonic() + _LIMIT
        for delay in _BACKOFF.delays():
            try:
                with rpc_errors():
                    return await step(await self._link())
            except ServiceError as error:
                if is_final(error) or time.monotonic() > give_up_at:
                    raise
                logger.info("%s: will try again: %s", self._messages.name, error)
            await asyncio.sleep(delay)
        raise AssertionError("the delays never end")

    def _remember(self, task: Task, answer: Answer) -> None:
        if task.id:
            self._answers[task.id] = answer
            while len(self._answers) > _REMEMBERED:
                self._answers.popitem(last=False)


class _Timed:
    """A fetch that says how many seconds it took."""

    def __init__(self, fetch: Callable[[Path | Sink], Awaitable[int]]) -> None:
        self._fetch = fetch
        self.seconds = 0.0

    async def __call__(self, target: Path | Sink) -> int:
        began = time.monotonic()
        try:
            return await self._fetch(target)
        finally:
            self.seconds += time.monotonic() - began
