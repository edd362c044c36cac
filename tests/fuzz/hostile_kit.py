"""Strategies for messages: random ones from their descriptors, valid ones with changes, damaged bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from fedcombiner.wire.chunks import encode_request
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.fuzz.fuzz_kit import METHODS, Target
from tests.text_fields import Path, put_text, text_fields

MAX_DEPTH = 3
NASTY = [
    "",
    "c1",
    "../../etc/passwd",
    "/",
    "a\x00b",
    "\x1b[2J\n",
    "\u202e\ufeff",
    "𝕴" * 50,
    "x" * 300,
    "x" * 200_000,
    "[" * 20_000,
    '{"a":' * 20_000,
    "9" * 5_000,
    "1e999",
    "NaN",
    "-1",
    "None",
    "True",
    '{"training_metadata": {"num_examples": 1e400}}',
    '{"config": "{\\"_job_id\\": 7, \\"_task_id\\": []}"}',
    '"\\ud800"',
]
CONFIG_KEYS = ["task", "model_id", "round_id", "round_timeout", "buffer_size", "clients_required", "helper"]
NUMBERS: Mapping[int, tuple[int, int]] = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_ENUM: (-(2**31), 2**31 - 1),
}


def texts(*known: str) -> st.SearchStrategy[str]:
    return st.sampled_from([*NASTY, *known]) | st.text(max_size=40)


def values(field: FieldDescriptor, known: tuple[str, ...], depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages(field.message_type, known, depth + 1)
    if field.type == FieldDescriptor.TYPE_STRING:
        return texts(*known, *CONFIG_KEYS) if field.name == "key" else texts(*known)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=100)
    if field.type in NUMBERS:
        low, high = NUMBERS[field.type]
        return st.integers(0, 6) | st.integers(low, high)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    return st.floats(width=32)


def messages(kind: Descriptor, known: tuple[str, ...] = (), depth: int = 0) -> st.SearchStrategy[Message]:
    """Messages of a kind with any of their fields set; `known` are ids that exist."""
    make = GetMessageClass(kind)
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for field in kind.fields:
        if depth >= MAX_DEPTH and field.message_type is not None:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = (values(part, known, depth) for part in field.message_type.fields)
            optional[field.name] = st.dictionaries(key, value, max_size=3)
        elif field.is_repeated:
            optional[field.name] = st.lists(values(field, known, depth), max_size=3)
        else:
            optional[field.name] = values(field, known, depth)
    return st.fixed_dictionaries({}, optional=optional).map(lambda fields: make(**fields))


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with a few of them changed, taken out or put in."""
    places = st.integers(0, max(len(data) - 1, 0))
    edits = st.lists(st.tuples(places, st.integers(0, 3), st.binary(max_size=4)), min_size=1, max_size=4)
    return edits.map(lambda chosen: edited(data, chosen))


def edited(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, drop, put in edits:
        data = data[:place] + put + data[place + drop :]
    return data


def valid(target: Target) -> dict[str, Message]:
    """For each method something that it takes."""
    client = fedn_pb2.Client(name="c1")
    data = json.dumps({"_job_id": target.job_id, "_task_id": "t", "round_id": "1"})
    meta = json.dumps({"training_metadata": {"num_examples": 1}, "config": data})
    start = {"task": "training", "model_id": target.model_id, "round_id": "1", "round_timeout": "1"}
    update = fedn_pb2.ModelUpdate(sender=client, model_id=target.model_id, model_update_id="u", meta=meta)
    by_hand = {"sender": client, "receiver": client, "model_id": target.model_id, "data": data}
    found: dict[str, Message] = {
        "SendHeartbeat": fedn_pb2.Heartbeat(sender=client),
        "SendStatus": fedn_pb2.Status(
            sender=client, log_level=fedn_pb2.WARNING, data=json.dumps({"data": data})
        ),
        "SendModelUpdate": update,
        "SendModelValidation": fedn_pb2.ModelValidation(sender=client, meta=data, data='{"loss": 1}'),
        "SendModelUpdateRequest": fedn_pb2.TaskRequest(**by_hand),
        "SendModelValidationRequest": fedn_pb2.ModelValidationRequest(**by_hand),
        "Start": fedn_pb2.ControlRequest(
            parameter=[fedn_pb2.Parameter(key=key, value=value) for key, value in start.items()]
        ),
        "Configure": fedn_pb2.ControlRequest(parameter=[fedn_pb2.Parameter(key="max_clients", value="8")]),
        "Put": pb.PutModelRequest(model_id=target.model_id, name="note"),
        "Download": fedn_pb2.ModelRequest(id=target.model_id),
    }
    of_methods = {method: found.get(method.rsplit("/")[-1]) for method in METHODS}
    return {
        method: message
        for method, message in of_methods.items()
        if message is not None and message.DESCRIPTOR.full_name == METHODS[method].input_type.full_name
    }


def is_called(method: MethodDescriptor) -> bool:
    """Uploads are a target of their own."""
    return not method.client_streaming


def random_calls(target: Target) -> st.SearchStrategy[tuple[str, bytes]]:
    known = (target.model_id, target.job_id, target.session_id)

    def call(method: str) -> st.SearchStrategy[tuple[str, bytes]]:
        content = messages(METHODS[method].input_type, known)
        return content.map(lambda message: (method, message.SerializeToString()))

    return st.sampled_from([name for name, method in METHODS.items() if is_called(method)]).flatmap(call)


def changed_calls(target: Target) -> st.SearchStrategy[tuple[str, bytes]]:
    """Valid messages with some fields replaced, or with damaged bytes."""
    known = (target.model_id, target.job_id, target.session_id)
    bases = valid(target)

    def call(method: str) -> st.SearchStrategy[tuple[str, bytes]]:
        base = bases[method]

        def merged(change: Message) -> bytes:
            both = type(base)()
            both.CopyFrom(base)
            both.MergeFrom(change)
            return both.SerializeToString()

        contents = messages(base.DESCRIPTOR, known).map(merged) | damaged(base.SerializeToString())
        return contents.map(lambda content: (method, content))

    return st.sampled_from(sorted(bases)).flatmap(call)


def hostile_calls(target: Target) -> st.SearchStrategy[tuple[str, bytes]]:
    """Each hostile text in each text field of each method, the other fields as they should be."""
    bases = valid(target)
    fields = [
        (name, path)
        for name, method in METHODS.items()
        if is_called(method)
        for path in text_fields(method.input_type)
    ]

    def call(where: tuple[str, Path], text: str) -> tuple[str, bytes]:
        method, path = where
        message = GetMessageClass(METHODS[method].input_type)()
        if method in bases:
            message.CopyFrom(bases[method])
        put_text(message, path, text)
        return method, message.SerializeToString()

    return st.builds(call, st.sampled_from(fields), st.sampled_from(NASTY))


def random_bytes(_target: Target) -> st.SearchStrategy[tuple[str, bytes]]:
    names = [name for name, method in METHODS.items() if is_called(method)]
    others = ["/grpc.health.v1.Health/Check", "/no.such/Method", "/grpc.Connector/Dance"]
    return st.tuples(st.sampled_from([*names, *others]), st.binary(max_size=300))


def uploads() -> st.SearchStrategy[list[bytes]]:
    ids = st.sampled_from(["u1", "u2"]) | texts()
    statuses = st.sampled_from([0, 1]) | st.integers(-(2**31), 2**31 - 1)
    chunks = st.builds(encode_request, ids, statuses, st.binary(max_size=200))
    return st.lists(chunks | chunks.flatmap(damaged) | st.binary(max_size=50), max_size=5)
