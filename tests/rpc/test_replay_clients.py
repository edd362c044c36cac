"""FEDn 0.5 to 0.8, the C++ and the Android client, replayed against a discovery and a combiner."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest
from combiner.domain.types import LeftOut

from fedcombiner.client.made_up import to_npz
from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.rpc.combiner_kit import Replica, arrays_of, put_seed, reasons, training, until_streams
from tests.rpc.discovery_kit import Discovery
from tests.rpc.replay_kit import GENERATIONS, ReplayClient, fields_of, put, text_of
from tests.rpc.replay_kit import client as who

ALL = pytest.mark.parametrize("name", GENERATIONS)
TELLING = pytest.mark.parametrize("name", [g.name for g in GENERATIONS.values() if g.statuses])
VALIDATING = pytest.mark.parametrize("name", [g.name for g in GENERATIONS.values() if not g.blob])
AS_LIST = {str(i): np.arange(4 + i, dtype=np.float32).reshape(-1, 1) for i in range(3)}
AS_DICT = {"conv.weight": np.full((2, 3), 0.5, np.float32), "bias": np.arange(3, dtype=np.float32)}
SEEDS = pytest.mark.parametrize("seed", [AS_LIST, AS_DICT], ids=["list", "dict"])


class Federation:
    """A combiner, a discovery that names it, and clients."""

    def __init__(self, combiner: Replica, discovery: Discovery, leaving: AsyncExitStack) -> None:
        self.combiner = combiner
        self.operator = combiner.operator
        self.discovery = discovery
        self._leaving = leaving
        self._streams = 0

    async def join(self, generation: str, name: str = "") -> ReplayClient:
        joining = ReplayClient(GENERATIONS[generation], name or f"client-{generation.replace('.', '-')}")
        self._leaving.push_async_callback(joining.close)
        await joining.join(self.discovery.http)
        self._streams += len(joining.generation.streams)
        await until_streams(self.combiner, self._streams)
        return joining

    async def start(self, arrays: Mapping[str, np.ndarray], **more: object) -> str:
        """A job on a model of these arrays."""
        seed = await put_seed(self.combiner, to_npz(arrays))
        return await self.operator.start_job(training(seed, round_timeout=600, **more))

    async def ended(self, job_id: str) -> pb.Job:
        """By itself: long before the deadline of ten minutes."""
        return await self.operator.wait_job(job_id)


@pytest.fixture
async def federation(combiner: Replica, tmp_path: Path) -> AsyncIterator[Federation]:
    async with Discovery(tmp_path / "discovery").running() as discovery, AsyncExitStack() as leaving:
        host, port = combiner.address.rsplit(":", 1)
        await discovery.announce(address=host, port=int(port))
        await discovery.put_package()
        yield Federation(combiner, discovery, leaving)


@ALL
@SEEDS
async def test_it_joins_trains_and_is_in_the_aggregate(
    federation: Federation, name: str, seed: Mapping[str, np.ndarray]
) -> None:
    client = await federation.join(name)
    job_id = await federation.start(seed)
    given = await client.train(await client.next(), 1.0, 7)
    flat = np.concatenate([array.ravel() for array in seed.values()])
    assert np.array_equal(np.concatenate([array.ravel() for array in given.values()]), flat)
    job = await federation.ended(job_id)
    assert (job.state, list(job.accepted)) == (pb.SUCCEEDED, [client.identity]), job
    assert job.format == ("npz list" if "0" in seed else "npz dict")
    made = await arrays_of(federation.combiner, job.model_id)
    assert {n: a.dtype for n, a in made.items()} == {n: a.dtype for n, a in seed.items()}
    for array_name, array in seed.items():
        assert np.array_equal(made[array_name], array + 1)


async def test_all_of_them_in_one_round(federation: Federation) -> None:
    """The aggregate is the mean weighted by what each says it trained on."""
    clients = [await federation.join(name) for name in GENERATIONS]
    job_id = await federation.start(AS_LIST, clients_required=len(clients))
    weights = {"cpp": 3000, "android": 1}  # these always say so
    total = change = 0.0
    for number, client in enumerate(clients, start=1):
        examples = weights.get(client.generation.name, 100 * number)
        await client.train(await client.next(), float(number), examples)
        total, change = total + examples, change + examples * number
    job = await federation.ended(job_id)
    assert sorted(job.accepted) == sorted(client.identity for client in clients), job
    made = await arrays_of(federation.combiner, job.model_id)
    for array_name, array in AS_LIST.items():
        np.testing.assert_allclose(made[array_name], array + change / total, rtol=1e-6)
    shown = {c.client: c.era for c in await federation.operator.list_clients(all=True)}
    eras = {
        "0.5.0": "0.5",
        "0.6.2": "0.5",
        "0.7.0": "0.5",
        "0.8.0": "0.8",
        "cpp": "0.9",
        "android": "android",
    }
    assert shown == {client.identity: eras.get(client.generation.name, "android") for client in clients}


@VALIDATING
async def test_it_validates(federation: Federation, name: str) -> None:
    client = await federation.join(name)
    job_id = await federation.start(AS_LIST, task="validation")
    await client.validate(await client.next(), accuracy=0.75)
    job = await federation.ended(job_id)
    assert [(a.client, a.data) for a in job.answers] == [(client.identity, '{"accuracy": 0.75}')]
    model = await federation.operator.describe_model(job.parent_model_id)
    assert dict(model.metrics) == {"accuracy": 0.75}


@TELLING
async def test_a_failed_training_ends_the_round(federation: Federation, name: str) -> None:
    client = await federation.join(name)
    job_id = await federation.start(AS_LIST)
    await client.fail(await client.next())
    job = await federation.ended(job_id)
    assert reasons(job.failed) == {client.identity: "client_failed"}
    assert job.failed[0].detail == f"Client {client.name} failed to complete model update."


@ALL
async def test_an_empty_upload_ends_the_round(federation: Federation, name: str) -> None:
    client = await federation.join(name)
    job_id = await federation.start(AS_LIST)
    await client.upload_nothing(await client.next())
    assert reasons((await federation.ended(job_id)).failed) == {client.identity: "empty_upload"}


@ALL
async def test_a_crash_in_training_ends_the_round(federation: Federation, name: str) -> None:
    client = await federation.join(name)
    job_id = await federation.start(AS_LIST, client_grace=0.1)
    await client.next()
    await client.close()
    assert reasons((await federation.ended(job_id)).failed) == {client.identity: "client_lost"}


@VALIDATING
async def test_the_first_of_two_uploads_is_nobodys(federation: Federation, name: str) -> None:
    """0.7.0 uploads twice and names the second one: what it named is in the round, and gone with it."""
    client = await federation.join(name)
    job_id = await federation.start(AS_LIST)
    await client.train(await client.next(), 1.0, 1)
    assert (await federation.ended(job_id)).state == pb.SUCCEEDED
    left = [info.key.id async for info in federation.combiner.store.list("uploads")]
    assert client.calls.count("ModelService/Upload") == client.generation.uploads
    assert len(left) >= client.generation.uploads - 1
    owners = await federation.combiner.state.jobs.of_updates(left)
    assert [update for update in left if update in owners and owners[update].state == "RUNNING"] == []


async def test_a_blob_cannot_carry_whole_numbers(federation: Federation) -> None:
    """The Android client is left out, with the reason, and the round goes on without it."""
    android, other = await federation.join("android"), await federation.join("0.6.2")
    seed = {"w": np.zeros(3, np.float32), "steps": np.zeros(2, np.int64)}
    job_id = await federation.start(seed)
    await other.upload_nothing(await other.next())
    job = await federation.ended(job_id)
    assert list(job.asked) == [other.identity]
    assert [(o.client, o.reason) for o in job.left_out] == [(android.identity, LeftOut.FORMAT)]
    assert job.left_out[0].detail == "a blob of float32 cannot hold the array 'steps' of int64"


async def test_a_round_that_only_lacks_who_cannot_take_part_says_so(federation: Federation) -> None:
    android = await federation.join("android")
    job_id = await federation.start({"steps": np.zeros(2, np.int64)}, wait_for_clients=0)
    job = await federation.ended(job_id)
    assert job.state == pb.FAILED
    assert f"1 more cannot take part, such as {android.identity}: a blob of float32" in job.reason


async def test_nobody_of_0_8_is_asked_to_predict(federation: Federation) -> None:
    client = await federation.join("0.8.0")
    job_id = await federation.start(AS_LIST, task="inference", wait_for_clients=0)
    assert (
        f"{client.identity}: clients of generation 0.8 know no inference tasks"
        in (await federation.ended(job_id)).reason
    )


async def test_a_double_of_float64_goes_out_and_comes_back_as_float32(federation: Federation) -> None:
    client = await federation.join("android")
    seed = {"w": np.linspace(0, 1, 5), "b": np.asfortranarray(np.ones((2, 3)))}
    job_id = await federation.start(seed)
    await client.train(await client.next(), 1.0, 1)
    job = await federation.ended(job_id)
    made = await arrays_of(federation.combiner, job.model_id)
    assert made["w"].dtype == np.float64
    np.testing.assert_allclose(made["w"], seed["w"] + 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (np.full(15, np.nan, "<f4").tobytes(), "non_finite"),
        (np.zeros(14, "<f4").tobytes(), "not_a_model"),
        (np.zeros(16, "<f4").tobytes(), "not_a_model"),
        (b"PK\x03\x04" + bytes(56), "not_a_model"),
    ],
    ids=["NaN", "too short", "too long", "an archive's beginning"],
)
async def test_a_bad_blob_is_refused(federation: Federation, content: bytes, reason: str) -> None:
    client = await federation.join("android")
    job_id = await federation.start(AS_LIST)
    task = await client.next()
    await client._call("Combiner/SendModelUpdate", client.update(task, await client.upload(content), 1))
    assert reasons((await federation.ended(job_id)).rejected) == {client.identity: reason}


# ---- golden bytes: what these releases send and read, written down

NAME = "client1"
GOLDEN = {
    "a heartbeat of 0.5 to 0.8": (put(1, who(NAME)), "0a0912 07636c69656e7431"),
    "a subscription of the C++ client": (
        put(1, who(NAME, "id-1")),
        "0a0f 1207636c69656e7431 1a0469642d31",
    ),
    "the role of a combiner up to 0.19": (who("c", role=1), "0801 120163"),
    "a status of 0.7: WARNING, LOG, text time": (
        put(1, who(NAME)) + put(2, "no") + put(3, 2) + put(6, b"2024"),
        "0a091207636c69656e7431 12026e6f 1802 320432303234",
    ),
    "a status of 0.8: AUDIT, MODEL_UPDATE, Timestamp": (
        put(1, who(NAME)) + put(3, 4) + put(6, put(1, 1_707_436_800) + put(2, 5_000)) + put(7, 2),
        "0a091207636c69656e7431 1804 3209 0880d695ae06 108827 3802",
    ),
    "the end of an upload": (put(4, "u1"), "22027531"),
    "a chunk": (put(3, b"ab") + put(4, "u1") + put(5, 1), "1a026162 22027531 2801"),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_bytes(case: str) -> None:
    made, golden = GOLDEN[case]
    assert made.hex() == golden.replace(" ", "")


def test_the_union_reads_the_golden_bytes() -> None:
    """With the meaning that their releases give them."""
    status = fedn_pb2.Status.FromString(GOLDEN["a status of 0.8: AUDIT, MODEL_UPDATE, Timestamp"][0])
    assert (status.sender.name, status.log_level, status.type) == (NAME, 4, fedn_pb2.MODEL_UPDATE)
    older = fedn_pb2.Status.FromString(GOLDEN["a status of 0.7: WARNING, LOG, text time"][0])
    assert (older.log_level, older.timestamp) == (2, b"2024")
    subscription = fedn_pb2.ClientAvailableMessage.FromString(GOLDEN["a subscription of the C++ client"][0])
    assert (subscription.sender.client_id, subscription.sender.role) == ("id-1", 0)


@ALL
async def test_a_task_is_what_its_release_reads(federation: Federation, name: str) -> None:
    """Field by field, as numbered there."""
    client = await federation.join(name)
    job_id = await federation.start(AS_LIST, session_id="s1")
    task = await client.next()
    assert text_of(fields_of(task.fields[1]), 2) == "combiner"
    assert text_of(fields_of(task.fields[2]), 2) == client.identity
    assert task.id
    assert '"round_id": "1"' in task.data
    assert task.id in task.data
    assert text_of(task.fields, 6)[:2] == "20"  # text in every release
    assert task.model_id.endswith(".float32") == client.generation.blob
    await client.upload_nothing(task)
    await federation.ended(job_id)
