"""Many simulated clients on few connections."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from fedcombiner.client.made_up import MadeUp, one_hot, to_npz
from fedcombiner.client.simulate import SimulatedFleet
from fedcombiner.servicekit.errors import ServiceError
from tests.rpc.client_kit import DEADLINE, FakeCombiner, fake_services, serving, training, validation

CLIENTS = 30


def fleet_of(address: str, clients: int = CLIENTS) -> SimulatedFleet:
    return SimulatedFleet(
        clients,
        address,
        workload=lambda index: MadeUp(
            index,
            one_hot(clients),
            num_examples=lambda index: index + 1,
            fails=lambda index, task: index == 0 and task.kind == 2,
        ),
        clients_per_connection=7,
        name="sim-{}",
        ramp=0.05,
    )


async def test_each_client_answers_with_its_own_update() -> None:
    fake = FakeCombiner()
    fake.models["m"] = to_npz({"w": np.zeros(CLIENTS, np.float32)})
    async with serving(fake_services(fake)) as address, fleet_of(address) as fleet:
        await fleet.wait_connected(DEADLINE)
        assert len(fleet.stats.heartbeat_seconds) >= CLIENTS
        for name in fleet.names:
            await fake.until_open(name)
            fake.give(name, training("m", f"t-{name}"))
        await fake.until(
            lambda: len(fake.updates) == CLIENTS - 1, "all updates but that of the one that fails"
        )
        await fake.until_open("sim-3", "ModelValidationRequestStream")
        fake.give("sim-3", validation("m", "v1"), "ModelValidationRequestStream")
        await fake.until(lambda: fake.validations, "a validation")
        stats = fleet.stats
    assert (stats.trained, stats.failed, stats.validated) == (CLIENTS - 1, 1, 1)
    assert set(stats.asked_at) == set(fleet.names)
    for update in fake.updates:
        index = int(update.sender.name.removeprefix("sim-"))
        vector = np.load(io.BytesIO(fake.models[update.model_update_id]))["w"]
        assert np.flatnonzero(vector).tolist() == [index]
        assert json.loads(update.meta)["training_metadata"]["num_examples"] == index + 1


async def test_clients_that_do_not_get_through_are_counted() -> None:
    async with serving({}) as address:
        pass
    async with fleet_of(address) as fleet:
        with pytest.raises(TimeoutError, match="30 of 30 clients are not connected"):
            await fleet.wait_connected(0.2)


async def test_a_combiner_that_does_not_want_them_is_never_overlooked() -> None:
    async with serving({}) as address:
        fleet = SimulatedFleet(1, address, workload=_no_training)
        await fleet.__aenter__()
        with pytest.raises(ServiceError):
            await fleet.wait_connected(DEADLINE)
        with pytest.raises(ServiceError):
            await fleet.__aexit__(None, None, None)


def _no_training(index: int) -> MadeUp:
    return MadeUp(index, one_hot(1), trains=False)
