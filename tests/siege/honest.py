"""Ten honest clients and one more, and rounds with them for as long as somebody wants."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from fedcombiner.client.made_up import MadeUp, to_npz
from fedcombiner.client.messages import Task
from fedcombiner.client.operator import OperatorClient
from fedcombiner.client.simulate import SimulatedFleet
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb

HONEST: Final = tuple(f"honest-{index}" for index in range(10))
MEMBER: Final = "member"  # whose token the attacker has
ELEMENTS: Final = 300_000
PATIENCE_S: Final = 90.0  # in which a round ends, whatever happens
CONFIG: Final = {
    "rounds": 2,
    "validate": True,
    "clients_required": len(HONEST),
    "clients_requested": len(HONEST) + 1,
    "grace": 5,  # the member may not answer; an honest client is not to be left out for it
    "round_timeout": 75,
    "client_grace": 40,
    "wait_for_clients": 60,
    "max_failed_rounds": 1,
}


def model(seed: int) -> bytes:
    return to_npz({"w": np.random.default_rng(seed).standard_normal(ELEMENTS, np.float32)})


def spread_model() -> bytes:
    """A valid update whose numbers have all the exponents that a double can have here."""
    rng = np.random.default_rng(0)
    exponents = rng.integers(-1000, 900, ELEMENTS)
    return to_npz({"w": np.ldexp(rng.standard_normal(ELEMENTS), exponents)})


@dataclass(frozen=True)
class Round:
    """Times are seconds by the clock of this machine."""

    begun: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.begun


@dataclass
class Rounds:
    """Use as `async with`. `run` makes rounds; `done` are those that ended well, `broken` says what did not.

    Attributes:
        spread: whether the member's updates are to be as costly as they can.
    """

    address: str
    operator: OperatorClient
    done: list[Round] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    spread: bool = False
    member_token: str = ""
    seed: str = ""

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        self._contents = [model(index) for index in range(len(HONEST) + 1)]
        self._spread = spread_model()
        await self.operator.list_tokens()  # waits for the gateway
        self.seed = (await self.operator.put_model(model(99), name="seed")).model_id
        fleets = [await self._client(index, name) for index, name in enumerate((*HONEST, MEMBER))]
        await asyncio.gather(*(fleet.wait_connected(60) for fleet in fleets))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def run(self, stop: asyncio.Event) -> None:
        """Sessions one after the other, until somebody says stop; the last of them is not cut off."""
        while not stop.is_set():
            await self.session()

    async def session(self) -> None:
        session_id = str(uuid.uuid4())
        try:
            async with asyncio.timeout(PATIENCE_S * CONFIG["rounds"]):
                await self.operator.start_session(CONFIG, model_id=self.seed, session_id=session_id)
                session = await self.operator.wait_session(session_id)
                await self._judge(session)
        except TimeoutError:
            self.broken.append(f"a session of {CONFIG['rounds']} rounds did not end in time")
            await self.operator.cancel_session(session_id)

    async def _judge(self, session: pb.Session) -> None:
        if session.state != pb.SUCCEEDED or session.failed_rounds:
            self.broken.append(f"a session ended as {pb.State.Name(session.state)}: {session.reason}")
        for job in await self.operator.list_jobs(session_id=session.session_id):
            missing = sorted(set(HONEST) - set(job.accepted))
            if missing and job.state == pb.SUCCEEDED:
                self.broken.append(f"a {pb.Kind.Name(job.kind)} job did without {_named(missing, job)}")
        self.done += [
            Round(result.started_at, result.ended_at)
            for result in session.results
            if result.state == pb.SUCCEEDED
        ]

    async def _client(self, index: int, name: str) -> SimulatedFleet:
        token = (await self.operator.create_token("client", name=name, clients=[name])).secret
        if name == MEMBER:
            self.member_token = token
        workload = MadeUp(index, self._content, num_examples=lambda index: index + 1)
        fleet = SimulatedFleet(1, self.address, workload=lambda _: workload, name=name, token=token)
        return await self._stack.enter_async_context(fleet)

    def _content(self, index: int, task: Task) -> bytes:
        return self._spread if self.spread and index == len(HONEST) else self._contents[index]


def _named(missing: Sequence[str], job: Any) -> str:
    why = {outcome.client: outcome.reason for outcome in (*job.rejected, *job.failed)}
    return ", ".join(f"{name} ({why.get(name, 'not answered')})" for name in missing)
