"""What a client says, word for word as FEDn's clients of the same generation say it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final, cast

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from fedcombiner.wire.eras import ERAS, PREDICTION, TRAINING, VALIDATION, Era, timestamp_text
from fedcombiner.wire.pb import fedn_pb2

Clock = Callable[[], datetime]

GENERATIONS: Final[Mapping[str, Era]] = {"0.6": ERAS["0.5"], "0.8": ERAS["0.8"]}
"""The generations that a client of this library can be."""

_REQUEST_OF = {
    TRAINING: fedn_pb2.MODEL_UPDATE_REQUEST,
    VALIDATION: fedn_pb2.MODEL_VALIDATION_REQUEST,
    PREDICTION: fedn_pb2.MODEL_VALIDATION_REQUEST,
}
_WORDS = {
    TRAINING: ("Received model update request.", "training request", "model update"),
    VALIDATION: ("Recieved model validation request.", "validate request", "model validation"),  # sic
    PREDICTION: ("Recieved model validation request.", "infer request", "model validation"),
}


@dataclass(frozen=True)
class Task:
    """One request to this client.

    Attributes:
        kind: `TRAINING`, `VALIDATION` or `PREDICTION` of `fedcombiner.wire.eras`.
        request: the message as it came.
    """

    kind: fedn_pb2.StatusType.ValueType
    request: fedn_pb2.TaskRequest | fedn_pb2.ModelValidationRequest

    @classmethod
    def of(cls, request: fedn_pb2.TaskRequest | fedn_pb2.ModelValidationRequest) -> Task | None:
        """Read a request as a stream delivers it; None if it asks for what this library cannot do."""
        if isinstance(request, fedn_pb2.ModelValidationRequest):
            return cls(PREDICTION if request.is_inference else VALIDATION, request)
        kind = request.type or TRAINING  # a stream of training requests alone does not say so
        return cls(kind, request) if kind in _WORDS else None

    @property
    def id(self) -> str:
        """The id that the server knows the task by; empty if it has none, and then it is one of a kind."""
        return self.request.correlation_id

    @property
    def model_id(self) -> str:
        """The model to work on."""
        return self.request.model_id

    @cached_property
    def config(self) -> dict[str, Any]:
        """The session's config with the round's id, as the server sent it; empty if it sent no object."""
        try:
            config = json.loads(self.request.data or "{}")
        except (ValueError, RecursionError):
            return {}
        return config if isinstance(config, dict) else {}


@dataclass(frozen=True)
class Timings:
    """Seconds that the parts of a training task took."""

    fetch_model: float
    exec_training: float
    upload_model: float
    processing_time: float


class Messages:
    """Messages of one client."""

    def __init__(self, name: str, generation: str, now: Clock | None = None) -> None:
        self.name = name
        self.era = GENERATIONS[generation]
        self.one_task_stream = generation != "0.6"
        self._now: Clock = now or (lambda: datetime.now(UTC))
        self._sender = fedn_pb2.Client(name=name, role=_role(self.era.client_role))
        self.heartbeat = fedn_pb2.Heartbeat(sender=self._sender)
        self.subscription = fedn_pb2.ClientAvailableMessage(sender=self._sender)

    def received(self, task: Task) -> fedn_pb2.Status:
        """Sent when a task arrives."""
        return self._status(_WORDS[task.kind][0], fedn_pb2.AUDIT, _REQUEST_OF[task.kind], task.request)

    def started(self, task: Task) -> fedn_pb2.Status:
        """Sent when work on a task begins."""
        indent = "\t Starting processing of" if task.kind == TRAINING else "Processing"
        text = f"{indent} {_WORDS[task.kind][1]} for model_id {task.model_id}"
        return self._status(text, fedn_pb2.INFO, fedn_pb2.LOG)

    def completed(self, task: Task, answer: Message) -> fedn_pb2.Status:
        """Sent after the answer to a task."""
        text = f"{_WORDS[task.kind][2].capitalize()} completed."
        return self._status(text, fedn_pb2.AUDIT, task.kind, answer)

    def failed(self, task: Task, reason: str) -> fedn_pb2.Status:
        """Sent in place of an answer: the server need not wait for it."""
        text = f"Client {self.name} failed to complete {_WORDS[task.kind][2]}."
        status = self._status(text, fedn_pb2.WARNING, fedn_pb2.LOG, task.request)
        status.extra = reason
        return status

    def update(
        self, task: Task, update_id: str, num_examples: int, metrics: Mapping[str, Any], timings: Timings
    ) -> fedn_pb2.ModelUpdate:
        """The answer to a training task whose update is uploaded under `update_id`."""
        meta = {
            "fetch_model": timings.fetch_model,
            "exec_training": timings.exec_training,
            "upload_model": timings.upload_model,
            "training_metadata": {**metrics, "num_examples": num_examples},
            "processing_time": timings.processing_time,
            "config": task.request.data,
        }
        return fedn_pb2.ModelUpdate(
            sender=self._sender,
            receiver=task.request.sender,
            model_id=task.model_id,
            model_update_id=update_id,
            correlation_id=task.request.correlation_id,
            timestamp=timestamp_text(self._now()),
            meta=json.dumps(meta, default=float),
        )

    def validation(self, task: Task, metrics: Mapping[str, Any]) -> fedn_pb2.ModelValidation:
        """The answer to a validation or inference task."""
        return fedn_pb2.ModelValidation(
            sender=self._sender,
            receiver=task.request.sender,
            model_id=task.model_id,
            data=json.dumps(metrics, default=float),
            correlation_id=task.request.correlation_id,
            timestamp=self.era.write_timestamp(self._now()),
        )

    def _status(
        self, text: str, level: int, kind: fedn_pb2.StatusType.ValueType, about: Message | None = None
    ) -> fedn_pb2.Status:
        return fedn_pb2.Status(
            sender=self._sender,
            status=text,
            log_level=cast("fedn_pb2.LogLevel.ValueType", self.era.write_log_level(level)),
            data="" if about is None else MessageToJson(about),
            timestamp=self.era.write_timestamp(self._now()),
            type=kind,
        )


def text_values(config: Mapping[str, object]) -> dict[str, str]:
    """Config values as FEDn writes them: `True`, `False`, `None`, numbers in decimal."""
    return {key: str(value) for key, value in config.items()}


def parameters(config: Mapping[str, object]) -> list[fedn_pb2.Parameter]:
    """A config as the parameters of a `ControlRequest`."""
    return [fedn_pb2.Parameter(key=key, value=value) for key, value in text_values(config).items()]


def _role(number: int) -> fedn_pb2.Role.ValueType:
    return cast("fedn_pb2.Role.ValueType", number)
