"""The whole stack in one process with STORE=minio: a round whose models are in a bucket."""

from pathlib import Path

import numpy as np
import pytest
from modelstore.settings import ModelstoreSettings

from fedcombiner.client import OperatorClient
from fedcombiner.client.made_up import MadeUp, one_hot
from fedcombiner.client.simulate import SimulatedFleet
from fedcombiner.standalone.app import Standalone, StandaloneSettings
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.contract.s3_kit import ROOT_SECRET, ROOT_USER, new_place
from tests.contract.state_kit import Server

DEADLINE = 20.0


@pytest.fixture(params=["moto", "minio"])
def s3(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


async def test_a_round_goes_through_the_bucket(s3: str, valkey: Server, tmp_path: Path) -> None:
    place = new_place(s3)
    models = ModelstoreSettings(
        store="minio",
        scratch=tmp_path / "scratch",
        minio_url=s3,
        minio_bucket=place.location.bucket,
        minio_access_key=ROOT_USER,
        minio_secret_key=ROOT_SECRET,
    )
    settings = StandaloneSettings(
        data_dir=tmp_path,
        port=0,
        discovery_port=0,
        metrics_port=0,
        redis_url=f"{valkey.url}?db=1",
        modelstore=models,
    )
    async with Standalone(settings) as stack, OperatorClient(stack.address) as operator:
        async with SimulatedFleet(2, stack.address, workload=lambda i: MadeUp(i, one_hot(2))) as fleet:
            await fleet.wait_connected(DEADLINE)
            model = await operator.put_model({"w": np.zeros(2, np.float32)})
            config = {"task": "training", "model_id": model.model_id, "round_id": "1"}
            job_id = await operator.start_job({**config, "clients_required": 2, "wait_for_clients": DEADLINE})
            job = await operator.wait_job(job_id)
        assert job.state == pb.SUCCEEDED, job
        await operator.get_model(job.model_id, tmp_path / "aggregate.npz")
    with np.load(tmp_path / "aggregate.npz") as aggregate:
        assert list(aggregate["w"]) == [0.5, 0.5]
    stored = place.stored()
    assert f"models/records/{job.model_id}" in stored
    assert not list(tmp_path.rglob("data")), "nothing is kept on the disk"
