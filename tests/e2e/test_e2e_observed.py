"""What a stack says of itself: logs and metrics agree with what happened; and its speed far away."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import pytest

from fedcombiner.client import OperatorClient
from fedcombiner.client.transfer import download, upload
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.e2e.fleets import ended, fleet, seed, start, trained
from tests.e2e.forwarder import slow_way
from tests.e2e.stacks import Stack

ROUNDS, CLIENTS = 2, 3


@pytest.mark.needs("logs")
async def test_every_line_of_the_log_is_json_and_tells_the_life_of_a_job(
    stack: Stack, operator: OperatorClient
) -> None:
    async with fleet(stack, CLIENTS) as clients:
        await clients.wait_connected(20)
        session = await start(operator, await seed(operator, CLIENTS), CLIENTS, rounds=1, validate=False)
        assert (await ended(operator, session)).state == pb.SUCCEEDED
    [job] = await trained(operator, session)
    lines = [line for line in stack.logs() if line.get("job_id") == job.job_id]
    told = [line["event"] for line in lines]
    assert told.index("clients asked") < told.index("round closed") < told.index("aggregate committed")
    assert {line.get("round_id") for line in lines} == {"1"}
    assert lines[-1]["model_id"] == job.model_id
    assert all({"timestamp", "level", "service", "event"} <= line.keys() for line in stack.logs())


@pytest.mark.needs("logs")
async def test_one_id_is_in_the_logs_of_both_services_that_a_command_calls(
    stack: Stack, operator: OperatorClient
) -> None:
    model_id = await seed(operator, 1)
    told = {line["event"]: line for line in stack.logs() if line.get("model_id") == model_id}
    received, registered = told["model received"], told["model registered"]
    assert received["request_id"] == registered["request_id"]


@pytest.mark.needs("metrics")
async def test_metrics_count_what_happened(stack: Stack, operator: OperatorClient) -> None:
    async def counted() -> list[float]:
        return [
            await stack.total("fedcombiner_jobs_ended_total", kind="training", state="SUCCEEDED"),
            await stack.total("fedcombiner_jobs_ended_total", kind="validation", state="SUCCEEDED"),
            await stack.total("fedcombiner_updates_accepted_total"),
            await stack.total("fedcombiner_updates_rejected_total"),
        ]

    before = await counted()
    async with fleet(stack, CLIENTS) as clients:
        await clients.wait_connected(20)
        session = await start(operator, await seed(operator, CLIENTS), CLIENTS, rounds=ROUNDS)
        assert (await ended(operator, session)).state == pb.SUCCEEDED
    after = await counted()
    assert [b - a for a, b in zip(before, after, strict=True)] == [ROUNDS, ROUNDS, ROUNDS * CLIENTS, 0]


async def test_a_model_goes_far_away_in_good_time(stack: Stack, tmp_path: Path) -> None:
    """50 ms of round trip: with the default windows of HTTP/2, 1.2 MiB a second, each way would take 27 s."""
    file = tmp_path / "model"
    file.write_bytes(os.urandom(32 << 20))
    update = f"e2e-{uuid.uuid4()}"
    async with (
        slow_way(stack.address, delay=0.025) as address,
        OperatorClient(address, token=stack.token) as operator,
    ):
        began = time.monotonic()
        await upload(operator.link, update, file)
        sent = time.monotonic()
        await download(operator.link, update, tmp_path / "back")
        took = sent - began, time.monotonic() - sent
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert max(took) < 13, f"up and down: {took}"
