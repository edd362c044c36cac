"""Client generations: the only module that knows how FEDn's releases differ in what numbers and bytes mean.

Every number of `Role` and `LogLevel` inside the stack is that of the generated stubs (FEDn 0.20 on);
an `Era` translates at the edge. Four eras can be told apart on the wire, and nothing else differs:

    era   releases       package  task streams    timestamps  numbers   sender role of a client
    0.5   0.5 to 0.7     grpc     one per kind    text        old       0 (WORKER)
    0.8   0.8            grpc     TaskStream      Timestamp   old       0 (WORKER)
    0.9   0.9 to 0.19    fedn     TaskStream      Timestamp   old       0 (WORKER)
    0.20  0.20 to 0.33   fedn     TaskStream      Timestamp   new       1 (CLIENT)
    android              grpc     training only   text        old       0 (WORKER)

FEDn's Android client is one of the first era by its messages, known by gRPC's user agent for Java, which no
other client of FEDn has; its models are headerless blobs (`Era.blobs`).

`client_id` came with 0.11 in the middle of an era and is optional ever after, so it is read per message
(`identity`), not per era.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import cast

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.registry import OLD_PACKAGE

_ROLES = len(fedn_pb2.Role.values())
_TEXT_FORMAT = "%Y-%m-%d %H:%M:%S.%f"
_TIMESTAMP_TAGS = (b"\x08", b"\x10")  # seconds and nanos; control characters, which no text begins with

TRAINING = fedn_pb2.MODEL_UPDATE
VALIDATION = fedn_pb2.MODEL_VALIDATION
PREDICTION = fedn_pb2.MODEL_PREDICTION

_JAVA = ("grpc-java", "grpc-kotlin")
BLOB_SUFFIX = ".float32"
"""Of the id of a model that is to be sent as a blob (`Era.blobs`)."""

# Seconds that a refused stream is held: FEDn's clients come back at once, up to a thousand times a second.
REFUSAL_HOLD_S = 5.0

# Which tasks each subscription carries; the value is `TaskRequest.type` of the task.
STREAM_TASKS: Mapping[str, frozenset[int]] = MappingProxyType(
    {
        "ModelUpdateRequestStream": frozenset({TRAINING}),
        "ModelValidationRequestStream": frozenset({VALIDATION, PREDICTION}),
        "TaskStream": frozenset({TRAINING, VALIDATION, PREDICTION}),
    }
)


@dataclass(frozen=True)
class Era:
    """How the messages of a range of FEDn releases are to be read and written.

    Attributes:
        name: the first release of the era; the key of `ERAS`.
        old_numbers: roles and log levels are those of before 0.20.
        text_timestamps: `Status.timestamp` and `ModelValidation.timestamp` are text, not a Timestamp.
        reads_unknown: a Download may be held with messages of status UNKNOWN ("not ready yet").
        tasks: what a client can be asked for; it ignores everything else.
        blobs: a model is the bytes of its arrays, float32 and little-endian, one after the other, in place of
            an archive.
    """

    name: str
    old_numbers: bool
    text_timestamps: bool
    reads_unknown: bool
    tasks: frozenset[int] = STREAM_TASKS["TaskStream"]
    blobs: bool = False

    @property
    def combiner_role(self) -> fedn_pb2.Role.ValueType:
        """The number that `sender.role` of a task must have: clients drop tasks of any other."""
        return self.write_role(fedn_pb2.COMBINER)

    @property
    def client_role(self) -> fedn_pb2.Role.ValueType:
        """The number that stands for a client in `receiver.role`."""
        return self.write_role(fedn_pb2.CLIENT)

    def write_role(self, role: fedn_pb2.Role.ValueType) -> fedn_pb2.Role.ValueType:
        """The number of a role in this era."""
        return cast("fedn_pb2.Role.ValueType", (role - 1) % _ROLES) if self.old_numbers else role

    def model_id(self, model_id: str) -> str:
        """The id under which a client of this era is to fetch a model."""
        return model_id + BLOB_SUFFIX if self.blobs else model_id

    def read_role(self, number: int) -> int:
        """The `fedn_pb2.Role` meant by a number of this era; a number without a meaning is OTHER."""
        if number not in fedn_pb2.Role.values():
            return fedn_pb2.OTHER
        return (number + 1) % _ROLES if self.old_numbers else number

    def read_log_level(self, number: int) -> fedn_pb2.LogLevel.ValueType:
        """The `fedn_pb2.LogLevel` meant by a number of this era; a number without a meaning is NONE."""
        level = number + 1 if self.old_numbers else number
        if level not in fedn_pb2.LogLevel.values():
            return fedn_pb2.NONE
        return cast("fedn_pb2.LogLevel.ValueType", level)

    def write_log_level(self, level: int) -> int:
        """The number of a `fedn_pb2.LogLevel` in this era; NONE, which old ones lack, becomes their INFO."""
        return max(level - 1, 0) if self.old_numbers else level

    def is_warning(self, log_level: int) -> bool:
        """Whether a Status says WARNING or ERROR, which is how clients report a failed task."""
        return self.read_log_level(log_level) in (fedn_pb2.WARNING, fedn_pb2.ERROR)

    def write_timestamp(self, moment: datetime) -> bytes:
        """Bytes of a `timestamp` field for an aware `moment`."""
        if self.text_timestamps:
            return timestamp_text(moment).encode()
        timestamp = Timestamp()
        timestamp.FromDatetime(moment)
        return timestamp.SerializeToString()


ERAS: Mapping[str, Era] = MappingProxyType(
    {
        era.name: era
        for era in (
            Era("0.5", old_numbers=True, text_timestamps=True, reads_unknown=False),
            Era(
                "0.8",
                old_numbers=True,
                text_timestamps=False,
                reads_unknown=True,
                tasks=frozenset({TRAINING, VALIDATION}),
            ),
            Era("0.9", old_numbers=True, text_timestamps=False, reads_unknown=True),
            Era("0.20", old_numbers=False, text_timestamps=False, reads_unknown=True),
            Era(
                "android",
                old_numbers=True,
                text_timestamps=True,
                reads_unknown=False,
                tasks=frozenset({TRAINING}),
                blobs=True,
            ),
        )
    }
)


def era_of_subscription(package: str, rpc: str, sender: fedn_pb2.Client, user_agent: str = "") -> Era:
    """The era of a client that opened stream `rpc` of `package`: the surest sign there is, worth keeping.

    `user_agent`: gRPC's, as the call's metadata has it.
    """
    if package == OLD_PACKAGE and rpc != "TaskStream" and user_agent.startswith(_JAVA):
        return ERAS["android"]
    if package == OLD_PACKAGE:
        return ERAS["0.8" if rpc == "TaskStream" else "0.5"]
    return ERAS["0.20" if sender.role == fedn_pb2.CLIENT else "0.9"]


def era_of_sender(package: str, sender: fedn_pb2.Client) -> Era:
    """The era of the sender of a unary message, where no subscription of it is known.

    0.8 is taken for 0.5: the two differ in timestamps only, and `read_timestamp` reads both.
    """
    return era_of_subscription(package, "", sender)


def identity(sender: fedn_pb2.Client) -> str:
    """The key under which a client is known. Empty if the message names nobody, as every Upload does."""
    return sender.client_id or sender.name


def read_timestamp(raw: bytes) -> datetime | None:
    """The moment in a `timestamp` field of any era, in UTC; None if it holds none that can be read.

    Text is local time of an unknown zone and is taken for UTC.
    """
    return _read_message(raw) if raw.startswith(_TIMESTAMP_TAGS) else _read_text(raw)


def timestamp_text(moment: datetime) -> str:
    """The text form of a timestamp in every era, always with the fraction that readers insist on."""
    return moment.astimezone(UTC).strftime(_TEXT_FORMAT)


def _read_text(raw: bytes) -> datetime | None:
    try:
        moment = datetime.fromisoformat(raw.decode())
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _read_message(raw: bytes) -> datetime | None:
    try:
        return Timestamp.FromString(raw).ToDatetime(tzinfo=UTC)
    except (DecodeError, ValueError, OverflowError):
        return None
