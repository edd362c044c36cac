"""The examples train on a real stack."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fedcombiner.client import FederatedClient, OperatorClient
from fedcombiner.client.arrays import Arrays, read_arrays
from fedcombiner.standalone.app import Standalone, StandaloneSettings
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def trained_by(
    tmp_path: Path,
    seed: Mapping[str, Any],
    make_clients: Callable[[str], Sequence[FederatedClient]],
    config: Mapping[str, object],
) -> tuple[pb.Session, Arrays]:
    """A session of these clients on a stack of its own, and the model it ends with."""
    settings = StandaloneSettings(data_dir=tmp_path / "data", port=0, discovery_port=0, metrics_port=0)
    async with Standalone(settings) as stack, OperatorClient(stack.address) as operator:
        clients = [asyncio.create_task(client.run()) for client in make_clients(stack.address)]
        try:
            model = await operator.put_model(seed)
            session = await operator.start_session(
                {"rounds": 3, "clients_required": len(clients), **config}, model_id=model.model_id
            )
            ended = await asyncio.wait_for(operator.wait_session(session.session_id), 60)
            await operator.get_model(ended.model_id, tmp_path / "trained.npz")
        finally:
            for client in clients:
                client.cancel()
            await asyncio.wait(clients)
    return ended, read_arrays(tmp_path / "trained.npz")


async def test_a_state_dict_is_trained_by_two_clients(tmp_path: Path) -> None:
    example = load("state_dict")
    ended, trained = await trained_by(
        tmp_path,
        example.seed(),
        lambda address: [example.make_client(name, address) for name in ("alice", "bob")],
        {},
    )
    errors = [result.metrics["mse"] for result in ended.results]
    assert errors == sorted(errors, reverse=True)
    np.testing.assert_allclose(trained["linear.weight"], example.TRUTH, atol=0.2)


async def test_own_files_are_trained_on_with_a_setting_of_the_session(tmp_path: Path) -> None:
    example = load("own_data")
    truth = np.array([1.0, -2.0], np.float32)
    files = {name: tmp_path / f"{name}.npz" for name in ("alice", "bob", "carol")}
    for seed, file in enumerate(files.values()):
        x = np.random.default_rng(seed).standard_normal((50 + seed, 2)).astype(np.float32)
        np.savez(file, x=x, y=x @ truth + 1)
    ended, trained = await trained_by(
        tmp_path,
        {"w": np.zeros(2, np.float32), "b": np.zeros(1, np.float32)},
        lambda address: [example.make_client(name, file, address) for name, file in files.items()],
        {"rate": 0.2},
    )
    assert ended.rounds_done == 3
    np.testing.assert_allclose(trained["w"], truth, atol=1e-2)
    np.testing.assert_allclose(trained["b"], [1.0], atol=1e-2)
