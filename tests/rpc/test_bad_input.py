"""Every bad input, one line each: what is given, and what comes of it (see `bad_input_kit`).

All lines go to one stack. After each it answers on, and nothing was written outside its data directory.
"""

# ruff: noqa: E501 — a table
from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial

import numpy as np
import pytest
import pytest_asyncio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from fedcombiner.client.made_up import to_npz
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from fedcombiner.wire.pb.fedn_pb2 import FAILED, IN_PROGRESS_OK, Client
from fedcombiner.wire.registry import OWN_FILES, OWN_PACKAGE
from tests.contract.state_kit import Server
from tests.rpc.bad_input_kit import (
    GOOD,
    MAX_MODEL_BYTES,
    Act,
    Bench,
    bomb,
    calls,
    chunk,
    control,
    downloads,
    end,
    ignored,
    names_update,
    nested,
    npz,
    objects,
    pickled,
    pickled_array,
    puts,
    resident,
    starts,
    starts_session,
    tells,
    trains_late,
    trains_twice,
    trains_unasked,
    twice_named,
    updates,
    uploads,
    validates,
    validates_unasked,
    warns,
    writes_outside,
)
from tests.rpc.combiner_kit import DEADLINE, Stack, no_task_left, one_hot
from tests.text_fields import put_text, text_fields

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20
HUGE = "x" * MIB
# As long as a message may be that has nothing but names and ids in it, or nothing but parameters.
LONG = "x" * 8000
LONG_VALUE = "x" * 500_000
NAMELESS = [Client(name=name) for name in ("", "x" * 257, "a\nb", "\x1b[2J", LONG)]
BAD_IDS = ["", "../x", "/etc/cron.d/x", "a/b", "..", ".x", "x\0", "x\n", "x y", "é", "x" * 129, LONG]
STREAMS = ["ModelUpdateRequestStream", "ModelValidationRequestStream", "TaskStream"]
TOLD = {
    "SendModelMetric": fedn_pb2.ModelMetric,
    "SendTelemetryMessage": fedn_pb2.TelemetryMessage,
    "SendAttributeMessage": fedn_pb2.AttributeMessage,
    "SendBackwardCompletion": fedn_pb2.BackwardCompletion,
}
small_bomb = partial(bomb, 896 * MIB)
META = '{"training_metadata": %s}'
EXAMPLES = META % '{"num_examples": %s}'


def of(values: object, dtype: str = "float32") -> bytes:
    return to_npz({"w": np.asarray(values, dtype)})


def by_hand(name: str, **fields: str) -> fedn_pb2.TaskRequest:
    return fedn_pb2.TaskRequest(receiver=Client(name=name), **fields)


# fmt: off
TABLE: list[tuple[str, Act, str]] = [
    # ---- what is no request at all
    ("bytes that are no message", calls("Connector/SendHeartbeat", b"\xff\xff"), "INVALID_ARGUMENT request: 2 bytes"),
    ("bytes that are no message, in a stream", calls("Combiner/TaskStream", b"\xff"), "INVALID_ARGUMENT request: 1 bytes"),
    ("text that is not UTF-8", calls("Connector/SendStatus", b"\x12\x01\xff"), "INVALID_ARGUMENT request: 3 bytes"),
    ("a message of 5 MiB", calls("Connector/SendStatus", fedn_pb2.Status(data=5 * HUGE)), "RESOURCE_EXHAUSTED"),
    ("an unknown method", calls("Connector/Dance"), "UNIMPLEMENTED"),
    ("what FEDn never built", calls("Connector/ReassignClient"), "UNIMPLEMENTED"),
    ("code for the server", control("SetServerFunctions", server_functions="print()"), "UNIMPLEMENTED"),
    # ---- 3.1 to 3.5: Connector
    *((f"heartbeat of {client.name[:9]!r}", ignored("Connector/SendHeartbeat", fedn_pb2.Heartbeat(sender=client)), "ignored") for client in NAMELESS),
    ("a heartbeat of 1 MiB", calls("Connector/SendHeartbeat", fedn_pb2.Heartbeat(sender=Client(name=HUGE))), "UNAVAILABLE request: 1048"),
    ("a stream asked for with 1 MiB", calls("Combiner/TaskStream", fedn_pb2.ClientAvailableMessage(data=HUGE)), "UNAVAILABLE request: 1048"),
    ("half a million attributes", calls("Combiner/SendAttributeMessage", b"\x12\x00" * (MIB // 2)), "UNAVAILABLE request: 1048"),
    ("half a million parameters", calls("Control/Start", b"\x12\x00" * (MIB // 2)), "INVALID_ARGUMENT request: 1048"),
    *((f"status of {client.name[:9]!r}", ignored("Connector/SendStatus", fedn_pb2.Status(sender=client)), "ignored") for client in NAMELESS),
    ("a status of no known level and type", calls("Connector/SendStatus", b"\x0a\x04\x12\x02c0\x18\x63\x38\x63"), "OK"),
    ("a warning that is not JSON", warns("no JSON"), "accepted"),
    ("a warning that is no object", warns("[]"), "accepted"),
    ("a warning nested 10,000 deep", warns(nested()), "accepted"),
    ("a warning about nobody's task", warns('{"correlationId": "of-nobody"}'), "accepted"),
    ("a warning of 1 MiB", warns(HUGE), "accepted"),
    ("active clients of no known channel", calls("Connector/ListActiveClients", b"\x10\x63"), "OK"),
    # ---- 3.6 to 3.8: streams
    *((f"{rpc} of {client.name[:9]!r}", calls(f"Combiner/{rpc}", fedn_pb2.ClientAvailableMessage(sender=client)), "UNAVAILABLE sender.name: 1 to 256") for rpc in STREAMS for client in NAMELESS),
    # ---- 3.3 and 5: Control
    ("a job without a task", starts(task=None), "INVALID_ARGUMENT task: 'nothing'"),
    ("a job without a model", starts(model_id=None), "INVALID_ARGUMENT model_id: 'nothing'"),
    ("a job without a round", starts(round_id=None), "INVALID_ARGUMENT round_id: 'nothing'"),
    ("an unknown task", starts(task="train"), "INVALID_ARGUMENT task: 'train'"),
    ("an unknown model", starts(model_id="nowhere"), "NOT_FOUND model_id: "),
    *((f"the model {bad[:9]!r}", starts(model_id=bad), "INVALID_ARGUMENT model_id: ") for bad in BAD_IDS),
    ("a round with control characters", starts(round_id="a\x1bb"), "INVALID_ARGUMENT round_id: 'a\\x1bb'"),
    ("a session with control characters", starts(session_id="a\nb"), "INVALID_ARGUMENT session_id: 'a\\nb'"),
    ("an unknown helper", starts(helper_type="os.system"), "INVALID_ARGUMENT helper_type: 'os.system'"),
    ("an unknown aggregator", starts(aggregator="fedprox"), "INVALID_ARGUMENT aggregator: 'fedprox'"),
    ("a timeout in words", starts(round_timeout="soon"), "INVALID_ARGUMENT round_timeout: 'soon'"),
    ("a timeout of 0", starts(round_timeout="0"), "INVALID_ARGUMENT round_timeout: '0'"),
    ("a timeout that is no number", starts(round_timeout="nan"), "INVALID_ARGUMENT round_timeout: 'nan'"),
    ("an endless timeout", starts(round_timeout="inf"), "INVALID_ARGUMENT round_timeout: 'inf'"),
    ("a buffer in words", starts(buffer_size="big"), "INVALID_ARGUMENT buffer_size: 'big'"),
    ("a buffer of 0", starts(buffer_size="0"), "INVALID_ARGUMENT buffer_size: '0'"),
    ("a buffer of -2", starts(buffer_size="-2"), "INVALID_ARGUMENT buffer_size: '-2'"),
    ("clients in words", starts(clients_required="all"), "INVALID_ARGUMENT clients_required: 'all'"),
    ("no clients", starts(clients_required="0"), "INVALID_ARGUMENT clients_required: '0'"),
    ("half a client", starts(clients_required="2.5"), "INVALID_ARGUMENT clients_required: '2.5'"),
    ("fewer requested than required", starts(clients_required="3", clients_requested="2"), "INVALID_ARGUMENT clients_requested: '2'"),
    ("a number of 5,000 digits", starts(clients_required="9" * 5000), "INVALID_ARGUMENT clients_required: '99"),
    ("digits of another script", starts(clients_required="٣"), "INVALID_ARGUMENT clients_required: '٣'"),
    ("half an over-selection", starts(over_selection="0.5"), "INVALID_ARGUMENT over_selection: '0.5'"),
    ("a negative grace", starts(grace="-1"), "INVALID_ARGUMENT grace: '-1'"),
    ("a client's grace in words", starts(client_grace="x"), "INVALID_ARGUMENT client_grace: 'x'"),
    ("a negative wait", starts(wait_for_clients="-1"), "INVALID_ARGUMENT wait_for_clients: '-1'"),
    ("a seed in words", starts(seed="one"), "INVALID_ARGUMENT seed: 'one'"),
    ("a maybe", starts(delete_models_storage="maybe"), "INVALID_ARGUMENT delete_models_storage: 'maybe'"),
    ("a key with control characters", starts(**{"a\x1bb": "1"}), "INVALID_ARGUMENT config: 'a\\x1bb'"),
    ("a key of 1 MiB", starts(**{HUGE: "1"}), "INVALID_ARGUMENT request: 1048"),
    ("a key of 500,000 characters", starts(**{LONG_VALUE: "1"}), "INVALID_ARGUMENT config: '5000"),
    ("an unknown key of 1 MiB", starts(more=HUGE), "INVALID_ARGUMENT request: 1048"),
    ("an unknown key of 500,000 characters", starts(more=LONG_VALUE), "INVALID_ARGUMENT config: '5000"),
    ("to stop an unknown job", control("Stop", job_id="x"), "NOT_FOUND job_id: there is no job 'x'"),
    ("to stop a job of 500,000 characters", control("Stop", job_id=LONG_VALUE), "NOT_FOUND job_id: there is no job 'xx"),
    ("to stop something else", control("Stop", job="x"), "INVALID_ARGUMENT parameter: 'job'"),
    ("to overwrite an attribute", control("Configure", server="x"), "INVALID_ARGUMENT parameter: 'server'"),
    ("a limit in words", control("Configure", max_clients="many"), "INVALID_ARGUMENT max_clients: 'many'"),
    ("a limit of 0", control("Configure", max_clients="0"), "INVALID_ARGUMENT max_clients: '0'"),
    ("a limit that begins well", control("Configure", max_clients="0000000110000000"), "INVALID_ARGUMENT max_clients: '0"),
    ("a limit in digits of another script", control("Configure", max_clients="٣"), "INVALID_ARGUMENT max_clients: '٣'"),
    ("to set an unknown aggregator", control("SetAggregator", aggregator="x"), "INVALID_ARGUMENT aggregator: 'x'"),
    # ---- 3.9: requests by hand
    ("a request to nobody", calls("Combiner/SendModelUpdateRequest", by_hand("nobody")), "NOT_FOUND receiver.name: "),
    ("a request without receiver", calls("Combiner/SendModelUpdateRequest"), "INVALID_ARGUMENT receiver.name: ''"),
    ("a validation without receiver", calls("Combiner/SendModelValidationRequest"), "INVALID_ARGUMENT receiver.name: ''"),
    ("a request to control characters", calls("Combiner/SendModelUpdateRequest", by_hand("a\nb")), "INVALID_ARGUMENT receiver.name: 'a\\nb'"),
    ("a request of 1 MiB", calls("Combiner/SendModelUpdateRequest", by_hand("c0", data=HUGE)), "INVALID_ARGUMENT request: 1048"),
    # ---- 3.10 and 8.1: what is said of an update
    *((f"an update of {client.name[:9]!r}", ignored("Combiner/SendModelUpdate", fedn_pb2.ModelUpdate(sender=client)), "ignored") for client in NAMELESS),
    ("an update for no task", calls("Combiner/SendModelUpdate", fedn_pb2.ModelUpdate(sender=Client(name="c0"))), "OK"),
    ("an update for another's task", trains_unasked, "rejected not_asked"),
    ("an update twice", trains_twice, "rejected duplicate"),
    ("an update for a closed round", trains_late, "rejected late"),
    ("an update that was not uploaded", names_update("nowhere"), "rejected not_uploaded: no complete upload named 'nowhere'"),
    *((f"an update named {bad[:9]!r}", names_update(bad), "rejected not_uploaded") for bad in BAD_IDS),
    ("no meta", tells(" "), "rejected num_examples: meta is not a JSON object"),
    ("meta that is not JSON", tells("no JSON"), "rejected num_examples: meta is not a JSON object"),
    ("meta that is a list", tells("[]"), "rejected num_examples: meta is not a JSON object"),
    ("meta nested 10,000 deep", tells(nested()), "rejected num_examples: meta is not a JSON object"),
    ("meta of more than 1 MiB", tells(EXAMPLES % 1 + " " * MIB), "rejected num_examples: meta is not a JSON object"),
    ("a config nested 10,000 deep", tells('{"training_metadata": {"num_examples": 0}, "config": "[%s"}' % ("[" * 10_000)), "rejected num_examples"),
    ("no examples told", tells(META % "{}"), "rejected num_examples: training_metadata.num_examples is missing"),
    ("metadata that is a number", tells(META % "7"), "rejected num_examples: training_metadata.num_examples is missing"),
    ("no examples", tells(EXAMPLES % "0"), "rejected num_examples: num_examples is 0"),
    ("fewer than no examples", tells(EXAMPLES % "-3"), "rejected num_examples: num_examples is -3"),
    ("half an example", tells(EXAMPLES % "1.5"), "rejected num_examples: num_examples is 1.5"),
    ("examples in words", tells(EXAMPLES % '"7"'), "rejected num_examples: num_examples is '7'"),
    ("true examples", tells(EXAMPLES % "true"), "rejected num_examples: num_examples is True"),
    ("examples that are no number", tells(EXAMPLES % "NaN"), "rejected num_examples: num_examples is nan"),
    ("endless examples", tells(EXAMPLES % "Infinity"), "rejected num_examples: num_examples is inf"),
    ("too many examples", tells(EXAMPLES % "536870912"), "rejected num_examples: num_examples is 536870912"),
    ("examples of 5,000 digits", tells(EXAMPLES % ("9" * 5000)), "rejected num_examples: meta is not a JSON object"),
    # ---- 9: what an update consists of
    ("a zero-byte update", updates(bytes), "failed empty_upload"),
    ("an update that is no archive", updates(lambda: b"hello"), "rejected not_a_model: the file of 5 bytes"),
    ("an update of text", updates(lambda: b"0.0 1.0\n" * 999), "rejected not_a_model"),
    ("a truncated archive", updates(lambda: one_hot(1)[:-40]), "rejected not_a_model"),
    ("half an archive", updates(lambda: one_hot(1)[:90]), "rejected not_a_model"),
    ("a pickle", updates(pickled), "rejected not_a_model"),
    ("an array of objects", updates(objects), "rejected dtype"),
    ("a pickled array", updates(pickled_array), "rejected dtype"),
    ("two entries of one name", updates(twice_named), "rejected not_a_model: two entries are named"),
    ("an entry that is no array", updates(lambda: npz([("w", GOOD)])), "rejected not_a_model: entry 'w' is not an npy array"),
    ("an entry that is a path", updates(lambda: npz([("../../w.npy", GOOD)])), "rejected names"),
    ("an archive without arrays", updates(lambda: npz([])), "rejected names"),
    ("another array", updates(lambda: npz([("v.npy", GOOD)])), "rejected names"),
    ("an array too many", updates(lambda: npz([("w.npy", GOOD), ("v.npy", GOOD)])), "rejected names"),
    ("an array that is too long", updates(lambda: one_hot(1, width=9)), "rejected shape"),
    ("an array of another rank", updates(partial(of, np.zeros((8, 1)))), "rejected shape"),
    ("complex numbers", updates(partial(of, np.zeros(8), "complex64")), "rejected dtype"),
    ("text", updates(partial(of, ["a"] * 8, "U1")), "rejected dtype"),
    ("NaN", updates(partial(of, [0] * 7 + [np.nan])), "rejected non_finite: array 'w' has nan at flat index 7"),
    ("infinity", updates(partial(of, [np.inf] + [0] * 7)), "rejected non_finite: array 'w' has inf at flat index 0"),
    ("numbers that overflow a sum", updates(partial(of, [1e300] * 8, "float64")), "rejected too_large: array 'w' has 1e+300"),
    ("a bomb that is larger than an update", updates(bomb), "rejected too_large: uploads/"),
    ("a bomb that tells its shape", updates(small_bomb), "rejected shape: array 'w' has shape (234881024,)"),
    ("a bomb that tells its size", updates(partial(small_bomb, shape=(8,))), "rejected too_large: array 'w' has 9395"),
    ("a bomb that tells nothing", updates(partial(small_bomb, shape=(8,), told=160)), "rejected too_large: array 'w' holds more than"),
    # ---- 3.11: answers to a validation
    *((f"an answer of {client.name[:9]!r}", ignored("Combiner/SendModelValidation", fedn_pb2.ModelValidation(sender=client)), "ignored") for client in NAMELESS),
    *((f"a prediction of {client.name[:9]!r}", ignored("Combiner/SendModelPrediction", fedn_pb2.ModelPrediction(sender=client)), "ignored") for client in NAMELESS),
    *((f"{rpc} of {client.name[:9]!r}", ignored(f"Combiner/{rpc}", kind(sender=client)), "ignored") for rpc, kind in TOLD.items() for client in NAMELESS),
    *((f"a metric of 0.26 of {client.name[:9]!r}", ignored("Connector/SendModelMetric", fedn_pb2.ModelMetric(sender=client)), "ignored") for client in NAMELESS),
    ("metrics that are no numbers", calls("Combiner/SendModelMetric", fedn_pb2.ModelMetric(sender=Client(name="c0"), metrics=[fedn_pb2.MetricElem(key="x", value=value) for value in (float("nan"), float("inf"))])), "OK"),
    ("10,000 metrics", calls("Combiner/SendModelMetric", fedn_pb2.ModelMetric(sender=Client(name="c0"), metrics=[fedn_pb2.MetricElem(key=f"m{number}") for number in range(10_000)])), "OK"),
    ("a metric named by 1 MiB", calls("Combiner/SendModelMetric", fedn_pb2.ModelMetric(sender=Client(name="c0"), metrics=[fedn_pb2.MetricElem(key=HUGE)])), "UNAVAILABLE request: 1048"),
    ("telemetry with control characters", calls("Combiner/SendTelemetryMessage", fedn_pb2.TelemetryMessage(sender=Client(name="c0"), telemetries=[fedn_pb2.TelemetryElem(key="a\x1b[2J")])), "OK"),
    ("an attribute of 1 MiB", calls("Combiner/SendAttributeMessage", fedn_pb2.AttributeMessage(sender=Client(name="c0"), attributes=[fedn_pb2.AttributeElem(key="a", value=HUGE)])), "UNAVAILABLE request: 1048"),
    ("an answer to another's question", validates_unasked, "rejected not_asked"),
    ("an answer of 1 MiB", validates(HUGE), "rejected too_large"),
    ("an answer that is not JSON", validates("no JSON"), "accepted"),
    ("an answer nested 10,000 deep", validates(nested()), "accepted"),
    # ---- 6: ModelService
    ("no message", uploads(), "INVALID_ARGUMENT status: 'end of the stream'"),
    ("no sentinel", uploads(chunk(), chunk()), "INVALID_ARGUMENT status: 'end of the stream'"),
    ("a sentinel with data", uploads(chunk(), end(data=b"y")), "INVALID_ARGUMENT status: 'OK with 1 bytes'"),
    ("a failure with data", uploads(end(status=FAILED, data=b"y")), "INVALID_ARGUMENT status: 'FAILED with 1 bytes'"),
    ("half a success with data", uploads(end(status=IN_PROGRESS_OK, data=b"y")), "INVALID_ARGUMENT status: 'IN_PROGRESS_OK with 1 bytes'"),
    ("an unknown status with data", uploads(end(status=77, data=b"y")), "INVALID_ARGUMENT status: '77 with 1 bytes'"),
    ("a failure, and the end", uploads(end(status=FAILED)), "INVALID_ARGUMENT status: 'end of the stream'"),
    ("a chunk that is no message", uploads(chunk(), b"\xff"), "INVALID_ARGUMENT ModelRequest: 1 bytes"),
    ("a cut message", uploads(chunk()[:-1]), "INVALID_ARGUMENT ModelRequest: "),
    ("a chunk of 5 MiB", uploads(chunk(), chunk(bytes(5 * MIB)), end()), "RESOURCE_EXHAUSTED"),
    ("a second id", uploads(chunk(), chunk(b"y", "m2")), "INVALID_ARGUMENT id: 'm2' is not valid; allowed: one id in a stream"),
    *((f"an upload named {bad[:9]!r}", uploads(chunk(model_id=bad), end(bad)), "INVALID_ARGUMENT id: ") for bad in BAD_IDS),
    ("one byte too many", uploads(*[chunk(bytes(MIB), "long")] * (MAX_MODEL_BYTES // MIB), chunk(b"x", "long"), end("long")), "INVALID_ARGUMENT uploads/long: 'more than"),
    ("an unknown model's bytes", downloads("unknown"), "FAILED"),
    *((f"the bytes of {bad[:9]!r}", downloads(bad), "FAILED") for bad in BAD_IDS),
    ("a download that is no message", calls("ModelService/Download", b"\xff"), "INVALID_ARGUMENT ModelRequest: 1 bytes"),
    # ---- combiner.v1
    ("a model that is nowhere", calls("Models/Put", pb.PutModelRequest(model_id="nowhere")), "NOT_FOUND model_id: "),
    *((f"to put the model {bad[:9]!r}", calls("Models/Put", pb.PutModelRequest(model_id=bad)), "INVALID_ARGUMENT model_id: ") for bad in BAD_IDS),
    ("a model without bytes", puts(bytes), "INVALID_ARGUMENT model_id: "),
    ("a model that is no archive", puts(lambda: b"hello"), "INVALID_ARGUMENT model_id: "),
    ("a model without arrays", puts(lambda: npz([])), "INVALID_ARGUMENT model_id: "),
    ("a model of objects", puts(objects), "INVALID_ARGUMENT model_id: "),
    ("a pickled model", puts(pickled_array), "INVALID_ARGUMENT model_id: "),
    ("a model that is a bomb", puts(bomb), "INVALID_ARGUMENT model_id: "),
    ("a note with control characters", puts(lambda: one_hot(1), "a\x1bb"), "INVALID_ARGUMENT name: 'a\\x1bb'"),
    ("a note of 1 MiB", puts(lambda: one_hot(1), HUGE), "INVALID_ARGUMENT request: 1048"),
    ("a note of 8,000 characters", puts(lambda: one_hot(1), LONG), "INVALID_ARGUMENT name: 'xx"),
    *((f"the record of {bad[:9]!r}", calls("Models/Get", pb.ModelRequest(model_id=bad)), "NOT_FOUND model_id: ") for bad in BAD_IDS if bad),
    *((f"{rpc} {bad[:9]!r}", calls(f"Jobs/{rpc}", pb.JobRequest(job_id=bad)), "NOT_FOUND job_id: ") for rpc in ("Get", "Watch", "Cancel") for bad in BAD_IDS),
    *((f"session {rpc} {bad[:9]!r}", calls(f"Sessions/{rpc}", pb.SessionRequest(session_id=bad)), "NOT_FOUND session_id: ") for rpc in ("Get", "Watch", "Cancel") for bad in BAD_IDS),
    *((f"a session named {bad[:9]!r}", starts_session(bad), "INVALID_ARGUMENT session_id: ") for bad in BAD_IDS if bad),
    *((f"a session on {bad[:9]!r}", starts_session(model_id=bad), "INVALID_ARGUMENT model_id: ") for bad in BAD_IDS if bad),
    ("a session on an unknown model", starts_session(model_id="nowhere"), "NOT_FOUND model_id: "),
    ("rounds in words", starts_session(rounds="many"), "INVALID_ARGUMENT rounds: 'many'"),
    ("no rounds", starts_session(rounds="0"), "INVALID_ARGUMENT rounds: '0'"),
    ("a session's unknown helper", starts_session(helper="evil"), "INVALID_ARGUMENT helper_type: 'evil'"),
    ("a session's key of 1 MiB", starts_session(more=HUGE), "INVALID_ARGUMENT request: 1048"),
    ("a session's key of 500,000 characters", starts_session(more=LONG_VALUE), "INVALID_ARGUMENT config: '5000"),
    ("jobs of an unknown session", calls("Jobs/List", pb.ListJobsRequest(session_id=LONG, limit=2**32 - 1)), "OK"),
    ("models of an unknown session", calls("Models/List", pb.ListModelsRequest(session_id=LONG, limit=2**32 - 1)), "OK"),
]
# fmt: on


# ---- 1 MiB of text in each field that takes text, of each message that is there

METHODS = {
    f"/{package}.{service.name}/{method.name}": method
    for package, file in (("grpc", fedn_pb2.DESCRIPTOR), *((OWN_PACKAGE, own) for own in OWN_FILES))
    for service in file.services_by_name.values()
    for method in service.methods
}
FINE = (
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "UNIMPLEMENTED",
    "UNAVAILABLE sender.name",
    "UNAVAILABLE request: ",
)


def with_long_texts(method: MethodDescriptor) -> Iterator[tuple[str, Message]]:
    """The method's request once for each of its text fields, with a text of 1 MiB in it."""
    for path in text_fields(method.input_type):
        message = GetMessageClass(method.input_type)()
        put_text(message, path, HUGE)
        yield ".".join(field.name for field in path), message


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(redis_server: Server, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    async with no_task_left():
        stack = Stack(redis_server.url, "bad-input:", tmp_path_factory.mktemp("data"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("combiner.servicers.streams.REFUSAL_HOLD_S", 0.01)
            yield await Bench.open(stack)
            await stack.close()


@pytest.mark.parametrize(("given", "act", "outcome"), TABLE, ids=[row[0] for row in TABLE])
async def test_what_comes_of_bad_input(bench: Bench, given: str, act: Act, outcome: str) -> None:
    with writes_outside(bench.data) as outside:
        came = await act(bench)
    assert came.startswith(outcome), f"{given}: {came[:300]}"
    assert len(came) < 1500
    assert not outside
    assert await bench.is_well()


@pytest.mark.parametrize("method", METHODS)
async def test_no_text_is_too_long(bench: Bench, method: str) -> None:
    for field, request in with_long_texts(METHODS[method]):
        came = await bench.call(method, request.SerializeToString(), DEADLINE)
        assert came.startswith(FINE), f"{field}: {came[:300]}"
        assert len(came) < 1500, field
    assert await bench.is_well()


async def test_memory_is_back_to_idle(bench: Bench) -> None:
    """After all of the above, and the heavy lines twice more."""
    words = ("bomb", "1 MiB", "5 MiB", "too many")
    heavy = [act for given, act, _ in TABLE if any(word in given for word in words)]
    sizes = []
    for _ in range(2):
        for act in heavy:
            await act(bench)
        sizes.append(resident())
    assert sizes[-1] <= 1.1 * sizes[0], "it grows"
    bombs_kept_here = 48 * MIB
    assert sizes[-1] <= 1.3 * (bench.idle_bytes + bombs_kept_here)
