"""Combiner: the clients' streams and their answers (sections 3.6 to 3.11 of FEDn's wire)."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime

import structlog

from combiner.capabilities import TYPE_OF_KIND
from combiner.clients.inbox import AnswerMessage, Inbox, UpdateMessage
from combiner.clients.streams import Replaced, StreamHub
from combiner.domain.params import is_id
from combiner.domain.types import Kind
from combiner.domain.updates import parse_task_data, parse_update_meta
from combiner.ports import StateUnavailable, Task, Tasks, View
from combiner.rounds.meter import Meter
from combiner.servicers.common import NAME_ALLOWED, Context, client_name, other_name, redis_away, user_agent
from combiner.servicers.reports import ReportRpcs
from fedcombiner.servicekit.errors import InvalidArgument, NotFound, Unavailable
from fedcombiner.servicekit.waitingroom import WaitingRoom
from fedcombiner.wire import eras
from fedcombiner.wire.eras import REFUSAL_HOLD_S, Era, era_of_subscription
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.registry import OLD_PACKAGE, with_package

log = structlog.get_logger()

# Of a request by hand: it waits in Redis, up to a hundred for each client.
MAX_RAW_BYTES = 64 * 1024


class CombinerServicer:
    """`name` is how the combiner signs its messages.

    Parameters have the names of FEDn's documentation, also where a request is called a response there.
    """

    def __init__(
        self, name: str, hub: StreamHub, inbox: Inbox, tasks: Tasks, meter: Meter, reports: ReportRpcs
    ) -> None:
        self._name = name
        self._hub = hub
        self._inbox = inbox
        self._tasks = tasks
        self._meter = meter
        self._refused = WaitingRoom()
        self.SendModelMetric = reports.SendModelMetric
        self.SendAttributeMessage = reports.SendAttributeMessage
        self.SendTelemetryMessage = reports.SendTelemetryMessage
        self.SendBackwardCompletion = reports.SendBackwardCompletion

    # --- streams to clients: three views of one queue

    @with_package
    async def ModelUpdateRequestStream(
        self, response: fedn_pb2.ClientAvailableMessage, context: Context, package: str = OLD_PACKAGE
    ) -> AsyncIterator[fedn_pb2.TaskRequest]:
        """Training tasks of the client that calls, as they come, for as long as it is open."""
        era = _era(package, "ModelUpdateRequestStream", response, context)
        async with aclosing(self._stream(response, View.TRAINING, era)) as tasks:
            async for task in tasks:
                yield self._request(task, era)

    @with_package
    async def ModelValidationRequestStream(
        self, response: fedn_pb2.ClientAvailableMessage, context: Context, package: str = OLD_PACKAGE
    ) -> AsyncIterator[fedn_pb2.ModelValidationRequest]:
        """Validation and inference tasks of the client that calls, as they come."""
        era = _era(package, "ModelValidationRequestStream", response, context)
        async with aclosing(self._stream(response, View.VALIDATION, era)) as tasks:
            async for task in tasks:
                yield self._validation_request(task, era)

    @with_package
    async def TaskStream(
        self, request: fedn_pb2.ClientAvailableMessage, context: Context, package: str = OLD_PACKAGE
    ) -> AsyncIterator[fedn_pb2.TaskRequest]:
        """All tasks of the client that calls, as they come: the one stream of FEDn 0.8 and later."""
        era = _era(package, "TaskStream", request, context)
        async with aclosing(self._stream(request, View.ALL, era)) as tasks:
            async for task in tasks:
                yield self._request(task, era)

    async def _stream(
        self, request: fedn_pb2.ClientAvailableMessage, view: View, era: Era
    ) -> AsyncGenerator[Task, None]:
        name = client_name(request.sender)
        if not name:
            log.warning("stream refused: no usable client name", era=era.name)
            await self._refused.hold(REFUSAL_HOLD_S)
            raise Unavailable(f"sender.name: {NAME_ALLOWED} are needed")
        await self._hub.hold(REFUSAL_HOLD_S)
        try:
            async with self._hub.open(name, view, era.name, other_name(request.sender)) as stream:
                async for task in stream.tasks():
                    log.debug("task sent", client=name, job_id=task.job_id, kind=task.kind)
                    yield task
        except Replaced:
            log.debug("stream ended: its client has opened newer ones", client=name)
            await self._refused.hold(REFUSAL_HOLD_S)
            raise

    async def ModelUpdateStream(
        self, update: fedn_pb2.ClientAvailableMessage, context: Context
    ) -> AsyncIterator[fedn_pb2.ModelUpdate]:
        """Part of FEDn's interface; nothing was ever sent on it. Open until the caller leaves or we drain."""
        async for _ in self._hub.idle():
            yield fedn_pb2.ModelUpdate()

    async def ModelValidationStream(
        self, update: fedn_pb2.ClientAvailableMessage, context: Context
    ) -> AsyncIterator[fedn_pb2.ModelValidation]:
        """As `ModelUpdateStream`."""
        async for _ in self._hub.idle():
            yield fedn_pb2.ModelValidation()

    # --- messages of tasks

    def _request(self, task: Task, era: Era) -> fedn_pb2.TaskRequest:
        if task.raw:
            return self._signed(fedn_pb2.TaskRequest.FromString(task.raw), era)
        return fedn_pb2.TaskRequest(
            sender=self._sender(era),
            receiver=fedn_pb2.Client(name=task.client, role=era.client_role),
            model_id=era.model_id(task.model_id),
            data=task_data(task),
            correlation_id=task.task_id,
            timestamp=eras.timestamp_text(datetime.now(UTC)),
            session_id=task.session_id,
            type=TYPE_OF_KIND[task.kind],
        )

    def _validation_request(self, task: Task, era: Era) -> fedn_pb2.ModelValidationRequest:
        if task.raw:
            message = fedn_pb2.ModelValidationRequest.FromString(task.raw)
            message.sender.CopyFrom(self._sender(era))
            return message
        return fedn_pb2.ModelValidationRequest(
            sender=self._sender(era),
            receiver=fedn_pb2.Client(name=task.client, role=era.client_role),
            model_id=task.model_id,
            data=task_data(task),
            correlation_id=task.task_id,
            timestamp=eras.timestamp_text(datetime.now(UTC)),
            is_inference=task.kind is Kind.INFERENCE,
        )

    def _sender(self, era: Era) -> fedn_pb2.Client:
        return fedn_pb2.Client(name=self._name, role=era.combiner_role)

    def _signed(self, message: fedn_pb2.TaskRequest, era: Era) -> fedn_pb2.TaskRequest:
        """Clients drop requests that are not from a combiner."""
        message.sender.CopyFrom(self._sender(era))
        return message

    # --- answers

    async def SendModelUpdate(self, request: fedn_pb2.ModelUpdate, context: Context) -> fedn_pb2.Response:
        """Answers when the update is recorded; what is wrong with an update is said in its job, never
        here: an error would end the client.
        """
        name = client_name(request.sender)
        if not name:
            self._meter.nameless("SendModelUpdate")
        else:
            meta = parse_update_meta(request.meta, request.config)
            task_id = meta.task_id or request.correlation_id[:128]
            await self._inbox.update(UpdateMessage(name, request.model_update_id, task_id, meta))
        return fedn_pb2.Response(response="RECEIVED ModelUpdate  from client  ")

    async def SendModelValidation(
        self, request: fedn_pb2.ModelValidation, context: Context
    ) -> fedn_pb2.Response:
        """Answers when the answer is recorded, or soon after if Redis is away; never fails."""
        await self._answer(request, "SendModelValidation")
        return fedn_pb2.Response(response="RECEIVED ModelValidation  from client  ")

    async def SendModelPrediction(
        self, request: fedn_pb2.ModelPrediction, context: Context
    ) -> fedn_pb2.Response:
        """As `SendModelValidation`, for an inference task."""
        await self._answer(request, "SendModelPrediction")
        return fedn_pb2.Response(response="RECEIVED ModelPrediction  from client  ")

    async def _answer(self, request: fedn_pb2.ModelValidation | fedn_pb2.ModelPrediction, rpc: str) -> None:
        name = client_name(request.sender)
        if not name:
            self._meter.nameless(rpc)
            return
        ref = parse_task_data(request.meta)
        task_id = ref.task_id or request.correlation_id[:128]
        await self._inbox.answer(
            AnswerMessage(name, task_id, ref.job_id, request.model_id[:128], request.data)
        )

    # --- requests by hand

    async def SendModelUpdateRequest(
        self, request: fedn_pb2.TaskRequest, context: Context
    ) -> fedn_pb2.Response:
        """Give the receiver a training request outside of any round. NOT_FOUND if it never connected."""
        await self._put_raw(request, Kind.TRAINING)
        return fedn_pb2.Response(response=f"RECEIVED ModelUpdateRequest from client {request.sender.name}")

    async def SendModelValidationRequest(
        self, request: fedn_pb2.ModelValidationRequest, context: Context
    ) -> fedn_pb2.Response:
        """As `SendModelUpdateRequest`, for validation, or inference if it says so."""
        await self._put_raw(request, Kind.INFERENCE if request.is_inference else Kind.VALIDATION)
        return fedn_pb2.Response(
            response=f"RECEIVED ModelValidationRequest from client {request.sender.name}"
        )

    async def _put_raw(
        self, request: fedn_pb2.TaskRequest | fedn_pb2.ModelValidationRequest, kind: Kind
    ) -> None:
        """Into the receiver's queue, as FEDn does, without a job: an answer to it is `not_asked`.

        An answer that echoes the correlation id also takes the request out of the queue.
        """
        name = client_name(request.receiver)
        if not name:
            raise InvalidArgument("receiver.name", request.receiver.name, NAME_ALLOWED)
        if request.ByteSize() > MAX_RAW_BYTES:
            raise InvalidArgument("request", request.SerializeToString(), f"at most {MAX_RAW_BYTES} bytes")
        task_id = request.correlation_id if is_id(request.correlation_id) else str(uuid.uuid4())
        try:
            known = await self._tasks.put_raw(
                client=name, kind=kind, task_id=task_id, raw=request.SerializeToString()
            )
        except StateUnavailable as error:
            raise redis_away(error) from error
        if not known:
            raise NotFound(f"receiver.name: no client named {name!r} has connected")


def _era(package: str, rpc: str, message: fedn_pb2.ClientAvailableMessage, context: Context) -> Era:
    return era_of_subscription(package, rpc, message.sender, user_agent(context))


def task_data(task: Task) -> str:
    """JSON as old clients echo it and new ones read it (they need an object with `round_id`)."""
    return task.data or json.dumps({"_task_id": task.task_id})
