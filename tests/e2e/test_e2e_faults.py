"""Every service and every back end is restarted, killed and paused while a session runs.

The session must end with the bytes of one that nobody disturbed. Each fault has a round of its own: half of
the clients answer before it, the others while it lasts, so each round has answers on both sides of it. All
clients are required: a lost answer would fail the round, and one that counted twice would change the bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from fedcombiner.client import OperatorClient
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.e2e.fleets import (
    NOISE,
    ended,
    fleet,
    noise_by_round,
    seed,
    start,
    trained,
    until_accepted,
    until_job,
)
from tests.e2e.stacks import Compose

pytestmark = [pytest.mark.needs("services"), pytest.mark.timeout(600)]

CLIENTS = 6
PAUSE_S = 30.0
SERVICES = (
    "combiner-1",
    "combiner-2",
    "modelstore-1",
    "modelstore-2",
    "discovery-mock",
    "gateway",
    "redis",
    "minio",
)
# Pauses are long, so services that do not stand in for each other share one.
TOGETHER = (
    "combiner-1 modelstore-1",
    "combiner-2 modelstore-2",
    "gateway discovery-mock",
    "redis",
    "minio",
)
# Nobody's deadline is to be what ends a round, and nobody's absence.
PATIENT = {"round_timeout": 300, "client_grace": 120, "wait_for_clients": 120, "validate": False}

Fault = Callable[[Compose, str, asyncio.Event], Awaitable[None]]


async def restarted(containers: Compose, service: str, answer: asyncio.Event) -> None:
    asyncio.get_running_loop().call_later(0.3, answer.set)
    await containers.do("restart", service)


async def killed(containers: Compose, service: str, answer: asyncio.Event) -> None:
    await containers.do("kill", "-s", "KILL", service)
    answer.set()
    await containers.do("start", service)


async def paused(containers: Compose, service: str, answer: asyncio.Event) -> None:
    await containers.do("pause", *service.split())
    try:
        answer.set()
        await asyncio.sleep(PAUSE_S)
    finally:
        await containers.do("unpause", *service.split())


async def reloaded(containers: Compose, service: str, answer: asyncio.Event) -> None:
    await containers.do("kill", "-s", "USR2", service)
    answer.set()


async def undisturbed(containers: Compose, operator: OperatorClient, rounds: int) -> str:
    """The sha256 of the last model. Its bytes depend on the last round alone."""
    async with fleet(containers, CLIENTS, content=noise_by_round) as clients:
        await clients.wait_connected(60)
        session = await start(operator, await seed(operator, NOISE), CLIENTS, rounds=rounds, **PATIENT)
        done = await ended(operator, session)
    assert done.state == pb.SUCCEEDED, done.reason
    return (await operator.describe_model(done.model_id)).sha256


async def disturbed(
    containers: Compose, operator: OperatorClient, faults: list[tuple[Fault, str]]
) -> tuple[str, list[pb.Job]]:
    answers = [asyncio.Event() for _ in faults]

    def gate(index: int, round_id: int) -> asyncio.Event | None:
        return answers[round_id - 1] if index >= CLIENTS // 2 else None

    async with fleet(containers, CLIENTS, content=noise_by_round, gate=gate) as clients:
        await clients.wait_connected(60)
        session = await start(operator, await seed(operator, NOISE), CLIENTS, rounds=len(faults), **PATIENT)
        for number, (fault, service) in enumerate(faults, 1):
            await until_accepted(operator, session, number, CLIENTS // 2)
            await fault(containers, service, answers[number - 1])
        done = await ended(operator, session, within=120)
        assert done.state == pb.SUCCEEDED, done.reason
        assert done.failed_rounds == 0, [result.reason for result in done.results]
        sha256 = (await operator.describe_model(done.model_id)).sha256
        jobs = await trained(operator, session)
        assert all(sorted(job.accepted) == sorted(clients.names) for job in jobs)
    return sha256, jobs


@pytest.mark.parametrize("fault", [restarted, killed, paused], ids=lambda fault: fault.__name__)
async def test_the_bytes_are_those_of_an_undisturbed_session(
    containers: Compose, operator: OperatorClient, fault: Fault
) -> None:
    faults = [(fault, service) for service in (TOGETHER if fault is paused else SERVICES)]
    if fault is restarted:
        faults.append((reloaded, "gateway"))
    expected = await undisturbed(containers, operator, len(faults))
    sha256, jobs = await disturbed(containers, operator, faults)
    assert len(jobs) == len(faults)
    assert sha256 == expected


async def test_a_combiner_that_is_told_to_stop_gives_its_work_away_and_ends_with_0(
    containers: Compose, operator: OperatorClient
) -> None:
    gate = asyncio.Event()
    async with fleet(containers, 4, gate=lambda index, round_id: gate) as clients:
        await clients.wait_connected(60)
        session = await start(operator, await seed(operator, 4), 4, rounds=2, **PATIENT)
        await until_job(operator, session.session_id, lambda job: job.asked == 4, "clients asked")
        await containers.do("stop", "combiner-1")
        try:
            states = {one["Service"]: one for one in await asyncio.to_thread(containers.containers)}
            assert (states["combiner-1"]["State"], states["combiner-1"]["ExitCode"]) == ("exited", 0)
            gate.set()
            done = await ended(operator, session)
            assert (done.state, done.failed_rounds) == (pb.SUCCEEDED, 0), done.reason
            for job in await trained(operator, session):
                assert sorted(job.accepted) == sorted(clients.names)
        finally:
            await containers.do("up", "--detach", "--no-build", "--no-deps", "--wait", "combiner-1")


async def test_a_combiner_starts_and_serves_without_discovery(
    containers: Compose, operator: OperatorClient
) -> None:
    await containers.do("stop", "discovery-mock")
    try:
        await containers.do("restart", "combiner-1", "combiner-2")
        async with fleet(containers, 2) as clients:
            await clients.wait_connected(60)
            done = await ended(
                operator, await start(operator, await seed(operator, 2), 2, rounds=1, **PATIENT)
            )
            assert done.state == pb.SUCCEEDED, done.reason
    finally:
        await containers.do("up", "--detach", "--no-build", "--no-deps", "--wait", "discovery-mock")
