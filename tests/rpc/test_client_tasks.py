"""A client against a combiner that asks again, cuts streams, fails and goes away."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest

from fedcombiner.client import FederatedClient
from fedcombiner.client.arrays import Arrays
from fedcombiner.client.errors import ServerUnreachable
from fedcombiner.client.made_up import to_npz
from fedcombiner.servicekit.errors import ServiceError
from fedcombiner.wire.eras import ERAS
from fedcombiner.wire.pb import fedn_pb2
from tests.rpc.client_kit import DEADLINE, FakeCombiner, fake_services, running, serving, training, validation

MODEL = to_npz({"w": np.arange(3, dtype=np.float32)})
OLD = ERAS["0.5"]


class Trainer:
    """Adds one, as often as it is let; a test can hold it in mid-training."""

    def __init__(self) -> None:
        self.calls = 0
        self.configs: list[Mapping[str, Any]] = []
        self.started = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, arrays: Arrays, config: Mapping[str, Any]) -> tuple[Arrays, int, dict[str, float]]:
        self.calls += 1
        self.configs.append(config)
        self.started.set()
        assert self.go_on.wait(DEADLINE)
        return {"w": arrays["w"] + 1}, 7, {"loss": 0.5}


@pytest.fixture
def fake() -> FakeCombiner:
    fake = FakeCombiner()
    fake.models["m"] = MODEL
    return fake


@asynccontextmanager
async def joined(fake: FakeCombiner, **arguments: Any) -> AsyncIterator[asyncio.Task[Any]]:
    arguments.setdefault("heartbeat_interval", 0.05)
    async with (
        serving(fake_services(fake)) as address,
        running(FederatedClient("alice", address=address, **arguments)) as task,
    ):
        yield task


def texts(fake: FakeCombiner) -> list[str]:
    return [status.status for status in fake.statuses]


async def test_a_training_task_is_done_as_fedns_clients_do_it(fake: FakeCombiner) -> None:
    trainer = Trainer()
    async with joined(fake, train=trainer):
        await fake.until_open("alice")
        fake.give("alice", request := training("m", "t1", lr="0.1"))
        await fake.until(lambda: len(fake.statuses) == 3, "the last status")
    [update] = fake.updates
    np.testing.assert_array_equal(np.load(io.BytesIO(fake.models[update.model_update_id]))["w"], [1, 2, 3])
    assert update.sender == fedn_pb2.Client(name="alice", role=fedn_pb2.OTHER)  # WORKER before 0.20
    assert (update.receiver, update.model_id, update.correlation_id) == (request.sender, "m", "t1")
    meta = json.loads(update.meta)
    assert set(meta) == {
        *("fetch_model", "exec_training", "upload_model", "training_metadata", "processing_time", "config")
    }
    assert meta["training_metadata"] == {"num_examples": 7, "loss": 0.5}
    assert meta["config"] == request.data
    assert trainer.configs == [json.loads(request.data)]
    assert texts(fake) == [
        "Received model update request.",
        "\t Starting processing of training request for model_id m",
        "Model update completed.",
    ]
    levels = [OLD.read_log_level(status.log_level) for status in fake.statuses]
    assert levels == [fedn_pb2.AUDIT, fedn_pb2.INFO, fedn_pb2.AUDIT]
    assert fake.metadata["client"] == "alice"
    assert fake.metadata["grpc-server"] == "127.0.0.1"
    assert fake.packages == {"grpc"}
    assert ("alice", "ModelValidationRequestStream") not in fake.streams


@pytest.mark.parametrize("inference", [False, True])
async def test_validation_and_inference(fake: FakeCombiner, inference: bool) -> None:
    async with joined(
        fake,
        validate=lambda arrays, config: {"sum": np.float32(arrays["w"].sum()), "odd": float("nan")},
        infer=lambda arrays, config: {"labels": [1, 2]},
    ):
        await fake.until_open("alice", "ModelValidationRequestStream")
        request = validation("m", "v1", inference=inference)
        fake.give("alice", request, "ModelValidationRequestStream")
        await fake.until(lambda: len(fake.statuses) == 3, "the last status")
    [answer] = fake.validations
    assert answer.data == ('{"labels": [1, 2]}' if inference else '{"sum": 3.0, "odd": NaN}')
    assert answer.correlation_id == "v1"
    assert fake.statuses[-1].type == (fedn_pb2.MODEL_PREDICTION if inference else fedn_pb2.MODEL_VALIDATION)


async def test_the_0_8_generation_takes_all_tasks_from_one_stream(fake: FakeCombiner) -> None:
    async with joined(fake, train=Trainer(), validate=lambda a, c: {"x": 1}, generation="0.8"):
        await fake.until_open("alice", "TaskStream")
        request = training("m", "t1")
        request.type = fedn_pb2.MODEL_UPDATE
        fake.give("alice", request, "TaskStream")
        request = fedn_pb2.TaskRequest(model_id="m", correlation_id="v1", type=fedn_pb2.MODEL_VALIDATION)
        fake.give("alice", request, "TaskStream")
        await fake.until(lambda: fake.validations and fake.updates, "both answers")
    assert len(fake.streams) == 1


@pytest.mark.parametrize("answered", [False, True])
async def test_a_task_that_comes_again_is_not_trained_again(fake: FakeCombiner, answered: bool) -> None:
    trainer = Trainer()
    async with joined(fake, train=trainer):
        await fake.until_open("alice")
        if not answered:
            trainer.go_on.clear()
        fake.give("alice", training("m", "t1"))
        if answered:
            await fake.until(lambda: len(fake.statuses) == 3, "the status after the answer")
        else:
            assert await asyncio.to_thread(trainer.started.wait, DEADLINE)
        fake.give("alice", training("m", "t1"))
        fake.give("alice", training("m", "t2"))
        trainer.go_on.set()
        await fake.until(lambda: any(u.correlation_id == "t2" for u in fake.updates), "the next answer")
    assert trainer.calls == 2
    first = [u.model_update_id for u in fake.updates if u.correlation_id == "t1"]
    assert len(first) == (2 if answered else 1)
    assert len(set(first)) == 1


async def test_tasks_without_an_id_are_each_done(fake: FakeCombiner) -> None:
    trainer = Trainer()
    async with joined(fake, train=trainer):
        await fake.until_open("alice")
        fake.give("alice", training("m", ""))
        fake.give("alice", training("m", ""))
        await fake.until(lambda: len(fake.updates) == 2, "both answers")
    assert trainer.calls == 2


async def test_a_stream_cut_in_mid_training_does_not_stop_the_training(fake: FakeCombiner) -> None:
    trainer = Trainer()
    trainer.go_on.clear()
    async with joined(fake, train=trainer):
        await fake.until_open("alice")
        fake.give("alice", training("m", "t1"))
        assert await asyncio.to_thread(trainer.started.wait, DEADLINE)
        fake.cut("alice")
        await fake.until_open("alice")
        fake.give("alice", training("m", "t1"))  # as the server does when a stream comes back
        trainer.go_on.set()
        await fake.until(lambda: fake.updates, "the answer")
        fake.give("alice", training("m", "t2"))
        await fake.until(lambda: fake.updates[-1].correlation_id == "t2", "the next answer")
    # The repeated task may come when the first is answered already; its second answer counts for nothing.
    assert list(dict.fromkeys(u.correlation_id for u in fake.updates)) == ["t1", "t2"]


async def test_a_server_that_restarts_in_mid_training_gets_the_update(fake: FakeCombiner) -> None:
    trainer = Trainer()
    trainer.go_on.clear()
    async with serving(fake_services(fake)) as address:
        client = FederatedClient("alice", train=trainer, address=address, heartbeat_interval=0.05)
        task = asyncio.create_task(client.run())
        await fake.until_open("alice")
        fake.give("alice", training("m", "t1"))
        assert await asyncio.to_thread(trainer.started.wait, DEADLINE)
    trainer.go_on.set()
    fake.streams.clear()
    async with serving(fake_services(fake), address):
        await fake.until(lambda: fake.updates, "the answer")
        await fake.until_open("alice")
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()


async def test_a_failing_callback_fails_its_task_only(fake: FakeCombiner) -> None:
    def train(arrays: Arrays, config: Mapping[str, Any]) -> tuple[Arrays, int, dict[str, float]]:
        if config["round_id"] == "1":
            raise ValueError("row 17 holds a secret")
        return arrays, 1, {}

    async with joined(fake, train=train):
        await fake.until_open("alice")
        fake.give("alice", request := training("m", "t1"))
        fake.give("alice", training("m", "t2", round_id="2"))
        await fake.until(lambda: fake.updates, "the answer to the second")
    [warning] = [s for s in fake.statuses if OLD.is_warning(s.log_level)]
    assert warning.status == "Client alice failed to complete model update."
    assert warning.type == fedn_pb2.LOG
    data = json.loads(warning.data)
    assert (data["correlationId"], data["data"], data["modelId"]) == ("t1", request.data, "m")
    assert warning.extra == "ValueError"
    assert "secret" not in str(warning)


@pytest.mark.parametrize(
    "result", [None, ({"w": np.zeros(3)}, 1.5, {}), ({"w": np.array([object()])}, 1, {}), ({}, True, {})]
)
async def test_a_result_that_is_no_update_is_a_failure(fake: FakeCombiner, result: Any) -> None:
    async with joined(fake, train=lambda arrays, config: result):
        await fake.until_open("alice")
        fake.give("alice", training("m", "t1"))
        await fake.until(lambda: len(fake.statuses) == 3, "the failure")
    assert OLD.is_warning(fake.statuses[-1].log_level)
    assert not fake.updates


async def test_a_task_that_failed_is_tried_when_it_comes_again(fake: FakeCombiner) -> None:
    trainer = Trainer()
    async with joined(fake, train=trainer):
        await fake.until_open("alice")
        fake.give("alice", training("later", "t1"))
        await fake.until(lambda: len(fake.statuses) == 3, "the failure: there is no such model")
        assert OLD.is_warning(fake.statuses[-1].log_level)
        fake.models["later"] = MODEL
        fake.give("alice", training("later", "t1"))
        await fake.until(lambda: fake.updates, "the answer")


async def test_an_answer_is_sent_until_it_is_answered_and_statuses_need_not_arrive(
    fake: FakeCombiner,
) -> None:
    fake.errors["SendModelUpdate"] = [
        *(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED)
    ]
    fake.errors["SendStatus"] = [grpc.StatusCode.UNAVAILABLE] * 3
    async with joined(fake, train=Trainer()):
        await fake.until_open("alice")
        fake.give("alice", training("m", "t1"))
        await fake.until(lambda: fake.updates, "the answer")
    assert not fake.errors["SendModelUpdate"]
    assert len(fake.updates) == 1


async def test_a_failure_is_told_until_it_is_answered(fake: FakeCombiner) -> None:
    fake.errors["SendStatus"] = [grpc.StatusCode.UNAVAILABLE] * 4  # two of them before the work
    async with joined(fake, train=Trainer()):
        await fake.until_open("alice")
        fake.give("alice", training("nowhere", "t1"))
        await fake.until(lambda: fake.statuses, "the failure")
    [status] = fake.statuses
    assert OLD.is_warning(status.log_level)


async def test_an_answer_that_is_refused_does_not_end_the_client(fake: FakeCombiner) -> None:
    fake.errors["SendModelUpdate"] = [grpc.StatusCode.INVALID_ARGUMENT]
    async with joined(fake, train=Trainer()):
        await fake.until_open("alice")
        fake.give("alice", training("m", "t1"))
        fake.give("alice", training("m", "t2"))
        await fake.until(lambda: fake.updates, "the answer to the second")
    assert [u.correlation_id for u in fake.updates] == ["t2"]


async def test_a_combiner_that_does_not_want_the_client_ends_it(fake: FakeCombiner) -> None:
    fake.errors["SendHeartbeat"] = [grpc.StatusCode.UNAUTHENTICATED]
    with pytest.raises(ServiceError, match="told to fail"):
        async with joined(fake, train=Trainer()) as task:
            await asyncio.wait([task], timeout=DEADLINE)


async def test_giving_up_after_silence() -> None:
    async with serving({}) as address:
        pass
    client = FederatedClient(
        "alice", train=Trainer(), address=address, heartbeat_interval=0.02, give_up_after=0.1
    )
    with pytest.raises(ServerUnreachable, match=address):
        await asyncio.wait_for(client.run(), DEADLINE)


async def test_cancelling_in_mid_training_ends_at_once(fake: FakeCombiner) -> None:
    trainer = Trainer()
    trainer.go_on.clear()
    async with joined(fake, train=trainer) as task:
        await fake.until_open("alice")
        fake.give("alice", training("m", "t1"))
        assert await asyncio.to_thread(trainer.started.wait, DEADLINE)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=DEADLINE)
    assert done == {task}
    assert task.cancelled()
    trainer.go_on.set()
    assert not fake.updates


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"name": "a b", "address": "x:1", "train": Trainer()}, "letters"),
        ({"name": "a", "train": Trainer()}, "address or discovery"),
        (
            {"name": "a", "address": "x:1", "discovery": "http://x", "train": Trainer()},
            "address or discovery",
        ),
        ({"name": "a", "address": "x:1"}, "at least one"),
        ({"name": "a", "address": "x:1", "train": Trainer(), "generation": "0.7"}, "0.6, 0.8"),
    ],
)
def test_arguments_that_make_no_client(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        FederatedClient(**arguments)
