"""The examples train on a real stack."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np

from fedcombiner.client import OperatorClient
from fedcombiner.client.arrays import read_arrays
from fedcombiner.standalone.app import Standalone, StandaloneSettings

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_a_state_dict_is_trained_by_two_clients(tmp_path: Path) -> None:
    example = load("state_dict")
    settings = StandaloneSettings(data_dir=tmp_path, port=0, discovery_port=0, metrics_port=0)
    async with Standalone(settings) as stack, OperatorClient(stack.address) as operator:
        clients = [asyncio.create_task(example.make_client(n, stack.address).run()) for n in ("alice", "bob")]
        try:
            model = await operator.put_model(example.seed())
            session = await operator.start_session(
                {"rounds": 3, "clients_required": 2}, model_id=model.model_id
            )
            ended = await asyncio.wait_for(operator.wait_session(session.session_id), 60)
            await operator.get_model(ended.model_id, tmp_path / "trained.npz")
        finally:
            for client in clients:
                client.cancel()
            await asyncio.wait(clients)
    errors = [result.metrics["mse"] for result in ended.results]
    assert errors == sorted(errors, reverse=True)
    np.testing.assert_allclose(
        read_arrays(tmp_path / "trained.npz")["linear.weight"], example.TRUTH, atol=0.2
    )
