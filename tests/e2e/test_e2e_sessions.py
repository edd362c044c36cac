"""Sessions as a data scientist runs them, on a stack of which only addresses are known."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fedcombiner.cli import demo
from fedcombiner.client import OperatorClient
from fedcombiner.client.made_up import one_hot, sent_as_is, to_npz
from fedcombiner.client.messages import Task
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.e2e.fleets import ended, fleet, seed, start, trained, until_job
from tests.e2e.stacks import Stack

MIB = 1 << 20


async def model_of(operator: OperatorClient, session: pb.Session, directory: Path) -> np.ndarray:
    path = directory / f"{session.session_id}.npz"
    await operator.get_model(session.model_id, path)
    with np.load(path) as arrays:
        return np.asarray(arrays["w"])


async def test_ten_clients_learn_the_digits_in_five_rounds(stack: Stack, tmp_path: Path) -> None:
    console, out = Console(quiet=True), tmp_path / "model.npz"
    accuracy = await demo.run(
        stack.address, None, token=stack.token, rounds=5, count=10, seed=1, out=out, console=console
    )
    assert accuracy >= 0.9


async def test_each_round_is_trained_and_validated(
    stack: Stack, operator: OperatorClient, tmp_path: Path
) -> None:
    async with fleet(stack, 4) as clients:
        await clients.wait_connected(20)
        session = await start(operator, await seed(operator, 4), 4, rounds=3)
        done = await ended(operator, session)
        assert (done.state, done.rounds_done) == (pb.SUCCEEDED, 3), done.reason
        for result in done.results:
            assert dict(result.metrics) == {"loss": 1.0, "accuracy": 0.5}
        for job in await trained(operator, session):
            assert sorted(job.accepted) == sorted(clients.names)
        assert await model_of(operator, done, tmp_path) == pytest.approx(np.full(4, 0.25))


async def test_an_inference_is_answered_by_every_client(stack: Stack, operator: OperatorClient) -> None:
    async with fleet(stack, 3) as clients:
        await clients.wait_connected(20)
        model_id = await seed(operator, 3)
        config = {"task": "inference", "model_id": model_id, "clients_required": 3, "clients_requested": 3}
        job = await operator.wait_job(await operator.start_job(config))
        assert job.state == pb.SUCCEEDED, job.reason
        assert sorted(answer.client for answer in job.answers) == sorted(clients.names)
        assert all(json.loads(answer.data) for answer in job.answers)


async def test_two_sessions_take_turns(stack: Stack, operator: OperatorClient) -> None:
    gate = asyncio.Event()
    async with fleet(stack, 2, gate=lambda index, round_id: gate) as clients:
        await clients.wait_connected(20)
        model_id = await seed(operator, 2)
        first = await start(operator, model_id, 2, rounds=2)
        await until_job(operator, first.session_id, lambda job: job.asked == 2, "clients asked")
        second = await start(operator, model_id, 2, rounds=2)
        assert (await operator.get_session(second.session_id)).state == pb.QUEUED
        gate.set()
        one, two = await ended(operator, first), await ended(operator, second)
        assert (one.state, two.state) == (pb.SUCCEEDED, pb.SUCCEEDED), (one.reason, two.reason)
        assert one.ended_at <= two.results[0].started_at


async def test_a_client_that_leaves_is_lost_and_one_that_comes_waits_for_the_next_round(
    stack: Stack, operator: OperatorClient
) -> None:
    gate = asyncio.Event()
    config = {"rounds": 2, "clients_requested": 3, "client_grace": 1, "validate": False}
    async with fleet(stack, 2, content=one_hot(4), gate=lambda i, r: gate if r == 1 else None) as stay:
        await stay.wait_connected(20)
        async with fleet(stack, 1, content=one_hot(4), gate=lambda i, r: asyncio.Event()) as leaver:
            await leaver.wait_connected(20)
            session = await start(operator, await seed(operator, 4), 2, **config)
            await until_job(operator, session.session_id, lambda job: job.asked == 3, "three clients asked")
        async with fleet(stack, 1, content=one_hot(4)) as comer:
            await comer.wait_connected(20)
            await until_job(operator, session.session_id, lambda job: job.failed == 1, "a client lost")
            gate.set()
            done = await ended(operator, session)
            assert (done.state, done.failed_rounds) == (pb.SUCCEEDED, 0), done.reason
            first, second = await trained(operator, session)
            assert [(lost.client, lost.reason) for lost in first.failed] == [(leaver.names[0], "client_lost")]
            assert sorted(first.accepted) == sorted(stay.names)
            assert sorted(second.accepted) == sorted([*stay.names, *comer.names])


async def test_who_is_late_does_not_count(stack: Stack, operator: OperatorClient) -> None:
    late = asyncio.Event()
    async with fleet(stack, 3, gate=lambda index, round_id: late if index == 2 else None) as clients:
        await clients.wait_connected(20)
        config = {"rounds": 1, "clients_requested": 3, "round_timeout": 2, "validate": False}
        session = await start(operator, await seed(operator, 3), 2, **config)
        done = await ended(operator, session)
        assert done.state == pb.SUCCEEDED, done.reason
        [job] = await trained(operator, session)
        assert sorted(job.accepted) == sorted(clients.names[:2])
        late.set()


async def test_too_few_clients_end_a_session_with_a_reason(stack: Stack, operator: OperatorClient) -> None:
    async with fleet(stack, 2) as clients:
        await clients.wait_connected(20)
        config = {"rounds": 1, "wait_for_clients": 1, "max_failed_rounds": 1}
        done = await ended(operator, await start(operator, await seed(operator, 2), 5, **config))
        assert done.state == pb.FAILED
        assert "2 of 5 required clients active" in done.reason


async def test_a_poisoned_update_is_rejected_and_harms_nobody(
    stack: Stack, operator: OperatorClient, tmp_path: Path
) -> None:
    def poisoned(index: int, task: Task) -> bytes:
        vector = np.zeros(3, np.float32)
        vector[index] = np.nan if index == 1 else 1
        return to_npz({"w": vector})

    async with fleet(stack, 3, content=poisoned) as clients:
        await clients.wait_connected(20)
        config = {"rounds": 1, "clients_requested": 3, "validate": False}
        session = await start(operator, await seed(operator, 3), 2, **config)
        done = await ended(operator, session)
        assert done.state == pb.SUCCEEDED, done.reason
        [job] = await trained(operator, session)
        assert [(bad.client, bad.reason) for bad in job.rejected] == [(clients.names[1], "non_finite")]
        assert await model_of(operator, done, tmp_path) == pytest.approx([0.5, 0, 0.5])


async def test_a_session_is_cancelled_in_mid_round(stack: Stack, operator: OperatorClient) -> None:
    gate = asyncio.Event()
    async with fleet(stack, 2, gate=lambda index, round_id: gate) as clients:
        await clients.wait_connected(20)
        session = await start(operator, await seed(operator, 2), 2, rounds=3)
        await until_job(operator, session.session_id, lambda job: job.asked == 2, "clients asked")
        assert (await operator.cancel_session(session.session_id)).state == pb.CANCELLED
        jobs = await trained(operator, session)
        assert [job.state for job in jobs] == [pb.CANCELLED]
        gate.set()


@pytest.mark.timeout(400)
async def test_a_large_model_goes_through(stack: Stack, operator: OperatorClient, tmp_path: Path) -> None:
    # As large as the issue of containers wants it there; the time of `make test` is short.
    size = (300 if stack.name == "compose" else 48) * MIB
    file = tmp_path / "large.npz"
    np.savez(file, w=np.random.default_rng(1).standard_normal(size // 4).astype(np.float32))
    model = await operator.put_model(file)
    assert model.size == file.stat().st_size
    async with fleet(stack, 2, content=sent_as_is(file)) as clients:
        await clients.wait_connected(20)
        session = await start(operator, model.model_id, 2, rounds=1, validate=False)
        done = await ended(operator, session, within=240)
        assert done.state == pb.SUCCEEDED, done.reason
        # Two equal updates: their mean is the update.
        mean = await model_of(operator, done, tmp_path)
        with np.load(file) as sent:
            assert np.array_equal(mean, sent["w"])
