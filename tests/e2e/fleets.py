"""Clients of the scenarios: what they answer is known, and when is up to the scenario."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, Final

import numpy as np

from fedcombiner.client import OperatorClient
from fedcombiner.client.made_up import Content, MadeUp, one_hot, to_npz
from fedcombiner.client.messages import Task
from fedcombiner.client.simulate import SimulatedFleet
from fedcombiner.client.trust import Trust
from fedcombiner.client.workload import Fetch, Update
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.e2e.stacks import Stack

DEADLINE_S: Final = 60.0
NOISE: Final = 100_000


Gate = Callable[[int, int], asyncio.Event | None]
"""(index of the client, number of the round) -> what it waits for."""


class Held(MadeUp):
    """Trains when its `gate` for the round, if there is one, is open."""

    def __init__(
        self, index: int, content: Content, gate: Callable[[int, int], asyncio.Event | None]
    ) -> None:
        super().__init__(index, content)
        self._gate = gate

    async def train(self, task: Task, fetch: Fetch) -> Update:
        update = await super().train(task, fetch)
        gate = self._gate(self.index, round_of(task))
        if gate is not None:
            await gate.wait()
        return update


def round_of(task: Task) -> int:
    return int(str(task.config["round_id"]))


def fleet(
    stack: Stack,
    n: int,
    *,
    content: Content | None = None,
    gate: Gate = lambda index, round_id: None,
    address: str = "",
    trust: Trust | None = None,
    token: str = "",
) -> SimulatedFleet:
    """`n` clients that answer with one-hot vectors, under names that no other scenario has."""
    made = content or one_hot(n)
    name = f"e2e-{uuid.uuid4().hex[:6]}-{{:02d}}"
    return SimulatedFleet(
        n,
        address or stack.address,
        workload=lambda i: Held(i, made, gate),
        name=name,
        trust=trust,
        token=token,
    )


def noise_by_round(index: int, task: Task) -> bytes:
    """Numbers whose sum depends on the order of summation unless it is exact; others in each round."""
    rng = np.random.default_rng((index, round_of(task)))
    return to_npz({"w": rng.standard_normal(NOISE).astype(np.float32)})


async def seed(operator: OperatorClient, width: int) -> str:
    return (await operator.put_model({"w": np.zeros(width, np.float32)})).model_id


async def start(operator: OperatorClient, model_id: str, required: int, **config: Any) -> pb.Session:
    whole = {"clients_required": required, "clients_requested": max(required, 1), **config}
    return await operator.start_session(whole, model_id=model_id)


async def ended(operator: OperatorClient, session: pb.Session, *, within: float = DEADLINE_S) -> pb.Session:
    async with asyncio.timeout(within):
        return await operator.wait_session(session.session_id)


async def trained(operator: OperatorClient, session: pb.Session) -> list[pb.Job]:
    """The session's training jobs."""
    jobs = await operator.list_jobs(session_id=session.session_id)
    return [job for job in jobs if job.kind == pb.TRAINING]


async def until_job(
    operator: OperatorClient, session_id: str, wanted: Callable[[pb.JobEvent], bool], what: str
) -> pb.JobEvent:
    """The first event of the session's jobs that is `wanted`; how they are now counts, too."""
    looked = False
    try:
        async with asyncio.timeout(DEADLINE_S):
            async for event in operator.watch_session(session_id):
                if event.HasField("job") and wanted(event.job):
                    return event.job
                if not looked:
                    # From its first event on nothing is missed, but what came before is not told.
                    looked = True
                    for job in await operator.list_jobs(session_id=session_id):
                        async with aclosing(operator.watch_job(job.job_id)) as states:
                            snapshot = await anext(states)
                        if wanted(snapshot):
                            return snapshot
    except TimeoutError:
        raise AssertionError(f"waited {DEADLINE_S:g} s for {what}") from None
    raise AssertionError(f"the session ended without {what}")


async def until_accepted(operator: OperatorClient, session: pb.Session, round_id: int, updates: int) -> None:
    """So many updates of the round are accepted. Nobody tells of that and the round, so look again."""

    async def accepted() -> int:
        jobs = await trained(operator, session)
        return sum(len(job.accepted) for job in jobs if job.round_id == str(round_id))

    try:
        async with asyncio.timeout(2 * DEADLINE_S):
            while await accepted() < updates:
                await asyncio.sleep(0.1)
    except TimeoutError:
        jobs = await trained(operator, session)
        raise AssertionError(f"waited for {updates} updates of round {round_id}: {jobs}") from None
