"""FEDn's RoundController: rounds of real clients, over real sockets, from plain threads."""

from __future__ import annotations

import io
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from combiner.helpers import NpzDictHelper, NpzListHelper
from combiner.round import ModelUpdateError, RoundController
from combiner.server import Combiner

from fedcombiner.modelstorage.disk import DiskStore
from fedcombiner.modelstorage.store import ObjectKey
from fedcombiner.servicekit.errors import InvalidArgument, NotFound
from fedcombiner.wire.pb import fedn_pb2
from tests.rpc.seed_kit import (
    DEADLINE,
    Caller,
    interface_to,
    npz,
    operator,
    put_seed,
    stubs_to,
    trainers,
    until,
)

TRAINING = "ModelUpdateRequestStream"


@pytest.fixture
def two_trainers(seed: Combiner) -> Iterator[Combiner]:
    with trainers(seed, "one", "two"):
        until(lambda: seed.nr_active_trainers() == seed.nr_active_validators() == 2, "two clients")
        yield seed
    until(lambda: seed.nr_active_trainers() == seed.nr_active_validators() == 0, "no clients")


def config(model_id: str, **more: object) -> dict[str, object]:
    return {"model_id": model_id, "round_id": "1", "round_timeout": 60, "clients_required": 2, **more}


def weights(combiner: Combiner, model_id: str, helper: Any) -> Any:
    model = combiner.modelservice.get_model(model_id)
    assert model is not None
    return combiner.modelservice.load_model_from_BytesIO(model, helper)


def test_a_training_round_averages_what_clients_send(two_trainers: Combiner) -> None:
    model_id = put_seed(two_trainers)
    result = two_trainers.control.execute_training_round(config(model_id, delete_models_storage=False))
    assert (result["status"], result["reason"], result["name"]) == ("Success", "", "seed")
    assert result["round_id"] == "1"
    assert result["config"]["_job_id"]
    data = result["data"]
    assert (data["nr_expected_updates"], data["nr_required_updates"], data["timeout"]) == (2, 2, 60.0)
    assert data["aggregation_time"]["nr_aggregated_models"] == 2
    assert result["time_exec_training"] > 0
    # One example of ones, two of twos.
    np.testing.assert_allclose(
        weights(two_trainers, result["model_id"], NpzDictHelper())["w"], np.full(8, 5 / 3, np.float32)
    )

    job = operator(two_trainers, lambda client: client.get_job(result["config"]["_job_id"]))
    journal = two_trainers.call(lambda: two_trainers.app.shared.jobs.get(job.job_id))
    assert journal is not None
    update_id = journal.clients["one"].update_id
    update = two_trainers.control.load_model_update(NpzDictHelper(), update_id)
    np.testing.assert_array_equal(update["w"], np.ones(8, np.float32))
    content = two_trainers.control.load_model_update_str(update_id)
    assert isinstance(content, io.BytesIO)
    assert NpzDictHelper().load(content)["w"].sum() == 8  # type: ignore[arg-type]  # numpy reads files, too


def test_a_validation_round_gathers_what_clients_say(two_trainers: Combiner) -> None:
    result = two_trainers.control.execute_validation_round(config(put_seed(two_trainers)))
    assert (result["status"], result["data"]) == ("Success", {"one": '{"sum": 0.0}', "two": '{"sum": 0.0}'})


def test_a_round_that_cannot_be_is_refused(seed: Combiner) -> None:
    with pytest.raises(InvalidArgument, match="round_timeout: 'soon' is not valid"):
        seed.control.push_round_config(config("m", task="training", round_timeout="soon"))
    with pytest.raises(NotFound, match="there is no model and no completed upload named nowhere"):
        seed.control.execute_validation_round(config("nowhere"))
    with pytest.raises(InvalidArgument, match="aggregator: 'fedopt' is not valid; allowed: fedavg"):
        RoundController("fedopt", seed.app.store, seed, seed.modelservice)


def test_an_update_that_is_not_there_is_told(seed: Combiner) -> None:
    assert seed.control.load_model_update_str("nowhere") is None
    with pytest.raises(ModelUpdateError, match="there is no complete model update 'nowhere'"):
        seed.control.load_model_update(NpzListHelper(), "nowhere")


def send(combiner: Combiner, client: Caller, task_id: str, content: bytes) -> None:
    """Upload and send an update of one example."""
    update_id = str(uuid.uuid4())
    combiner.modelservice.set_model(io.BytesIO(content), update_id)
    update = fedn_pb2.ModelUpdate(
        sender=client.sender,
        model_update_id=update_id,
        correlation_id=task_id,
        meta='{"training_metadata": {"num_examples": 1}}',
    )
    client.stub.SendModelUpdate(update, timeout=DEADLINE)


class Asked:
    """A job whose two clients were asked, and have not answered."""

    def __init__(self, combiner: Combiner, a: Caller, b: Caller, **more: object) -> None:
        self._combiner = combiner
        self.config = config(put_seed(combiner), task="training", **more)
        self.config["_job_id"] = combiner.control.push_round_config(self.config)
        self._tasks = {client.name: client.next(TRAINING) for client in (a, b)}

    @property
    def job_id(self) -> str:
        return str(self.config["_job_id"])

    def send(self, client: Caller, content: bytes) -> None:
        send(self._combiner, client, self._tasks[client.name].correlation_id, content)


@pytest.fixture
def callers(seed: Combiner) -> Iterator[tuple[Caller, Caller]]:
    with stubs_to(seed) as channel, Caller(channel, "three") as a, Caller(channel, "four") as b:
        a.open(TRAINING)
        b.open(TRAINING)
        until(lambda: seed.nr_active_trainers() == 2, "two callers")
        yield a, b
    until(lambda: seed.nr_active_trainers() == 0, "no callers")


def in_thread(call: Any) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def test_a_round_that_fails_says_why(seed: Combiner, callers: tuple[Caller, Caller]) -> None:
    results: list[dict[str, Any]] = []
    running = in_thread(lambda: results.append(seed.control.execute_training_round(config(put_seed(seed)))))
    for client in callers:
        send(seed, client, client.next(TRAINING).correlation_id, b"no model")
    running.join(DEADLINE)
    assert results[0]["status"] == "Failed"
    assert results[0]["reason"].startswith("0 of 2 required updates")
    assert "model_id" not in results[0]


def test_waiting_ends_with_the_wanted_number_of_updates(
    seed: Combiner, callers: tuple[Caller, Caller]
) -> None:
    a, b = callers
    asked = Asked(seed, a, b)
    for number, client in ((1, a), (2, b)):
        waiting = in_thread(lambda number=number: seed.control.waitforit(asked.config, buffer_size=number))
        waiting.join(0.05)
        assert waiting.is_alive()
        asked.send(client, npz(w=np.ones(8)))
        waiting.join(DEADLINE)
        assert not waiting.is_alive()
    # It has ended: there is nothing to wait for.
    seed.control.waitforit(asked.config)


def test_an_update_that_is_rejected_does_not_count(seed: Combiner, callers: tuple[Caller, Caller]) -> None:
    a, b = callers
    asked = Asked(seed, a, b, clients_required=1)
    asked.send(a, b"no model")
    until(lambda: operator(seed, lambda client: client.get_job(asked.job_id)).rejected, "the rejection")
    waiting = in_thread(lambda: seed.control.waitforit(asked.config, buffer_size=1))
    waiting.join(0.05)
    assert waiting.is_alive()
    asked.send(b, npz(w=np.ones(8)))
    waiting.join(DEADLINE)
    assert not waiting.is_alive()


def test_waiting_ends_when_the_round_times_out(seed: Combiner, callers: tuple[Caller, Caller]) -> None:
    asked = Asked(seed, *callers)
    seed.control.waitforit({**asked.config, "round_timeout": 0.05})
    job = operator(seed, lambda client: client.get_job(asked.job_id))
    assert not job.received
    operator(seed, lambda client: client.cancel_job(job.job_id))


def test_waiting_for_no_job_is_refused(seed: Combiner) -> None:
    with pytest.raises(InvalidArgument, match="_job_id: 'nothing' is not valid"):
        seed.control.waitforit({})
    with pytest.raises(InvalidArgument, match="round_timeout: '-1' is not valid"):
        seed.control.waitforit({"_job_id": "j", "round_timeout": -1})
    with pytest.raises(NotFound, match="there is no job 'j'"):
        seed.control.waitforit({"_job_id": "j"})


def test_an_upload_is_staged_as_a_model(seed: Combiner) -> None:
    model_id = str(uuid.uuid4())
    seed.modelservice.set_model(io.BytesIO(npz(w=[1, 2])), model_id)
    for _ in range(2):
        seed.control.stage_model(model_id)
    assert operator(seed, lambda client: client.describe_model(model_id)).model_id == model_id


def test_a_model_is_staged_from_another_storage(seed: Combiner, tmp_path: Path) -> None:
    storage, model_id = DiskStore(tmp_path / "elsewhere"), str(uuid.uuid4())

    async def put() -> None:
        await storage.start()
        async with storage.writer(ObjectKey("models", model_id), max_bytes=1 << 20) as writer:
            await writer.write(npz(w=[3, 4]))
            await writer.commit()

    seed.call(put)
    controller = RoundController("fedavg", storage, seed, seed.modelservice)
    controller.stage_model(model_id)
    model = interface_to(seed).get_model(model_id)
    assert model is not None
    assert model.read() == npz(w=[3, 4])
    seed.call(storage.close)


def test_what_cannot_be_staged_is_told(seed: Combiner) -> None:
    with pytest.raises(NotFound, match="there is no model and no completed upload named nowhere"):
        seed.control.stage_model("nowhere", timeout_retry=1, retry=1)
    with pytest.raises(InvalidArgument, match=r"model_id: '\.\./x' is not valid"):
        seed.control.stage_model("../x")
    model_id = str(uuid.uuid4())
    seed.modelservice.set_model(io.BytesIO(b"no model"), model_id)
    with pytest.raises(InvalidArgument, match="an npz archive of numeric arrays"):
        seed.control.stage_model(model_id)
