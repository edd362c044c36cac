"""One session on the stack, with faults in it, and everything that must be true meanwhile and afterwards."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from types import TracebackType
from typing import Final, Self

import numpy as np
import psutil
import redis.asyncio

from fedcombiner.client.operator import OperatorClient
from fedcombiner.client.transfer import download_bytes
from fedcombiner.client.worker import Worker
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.faults.conductor import Point
from tests.faults.faults import Fault, How, Struck, name_of, strike
from tests.faults.fleet import CLIENTS, NAMES, Fleet, expected_shares, seed_model, times_in
from tests.faults.stack import COMBINERS, Stack

REACH_S: Final = 60.0
AFTER_S: Final = 10.0
SESSION_S: Final = 150.0
LOOK_S: Final = 0.02


def config(patience: float) -> Mapping[str, object]:
    """Everybody is needed, and no deadline is in the way of a recovery."""
    return {
        "rounds": 1,
        "clients_required": CLIENTS,
        "clients_requested": CLIENTS,
        "round_timeout": patience - 50,
        "wait_for_clients": patience - 50,
        "client_grace": patience - 60,
        "validate": True,
    }


@dataclass(frozen=True)
class Outcome:
    """What a session with faults came to.

    Attributes:
        seconds: from the first fault to the end of the session.
        takeover: seconds from a fault of the job's owner until another replica owned it; None: it needed not.
        errors: SendModelUpdate calls that ended with an error at a client.
    """

    seconds: float
    takeover: float | None
    errors: int


@dataclass
class Count:
    """Of all sessions, also those in which a promise was broken: what the aggregates themselves show.

    Attributes:
        found: client updates in the aggregates, each as often as it is in one.
        lost: in none, those of a session without an aggregate among them.
        doubled: in one more often than once; how often more.
    """

    sessions: int = 0
    found: int = 0
    lost: int = 0
    doubled: int = 0

    def add(self, times: Sequence[int]) -> None:
        """A session; `times` each client is in its aggregate."""
        self.sessions += 1
        self.found += sum(times)
        self.lost += sum(number == 0 for number in times)
        self.doubled += sum(number - 1 for number in times if number > 1)

    def __add__(self, other: Count) -> Count:
        return Count(
            self.sessions + other.sessions,
            self.found + other.found,
            self.lost + other.lost,
            self.doubled + other.doubled,
        )

    def __str__(self) -> str:
        return (
            f"{self.sessions} sessions ({2 * self.sessions} rounds), {self.found} updates "
            f"in their aggregates: {self.lost} lost, {self.doubled} doubled"
        )


class NotReached(AssertionError):
    """The session went well, but not through this step any more: it had been made before."""


class Trial:
    """A stack with its fleet, an operator and a seed model. Use as `async with`.

    `patience`: seconds in which a session must end, whatever happens. `count` is added to. `worker`: what
    the clients are like.
    """

    def __init__(
        self,
        patience: float = SESSION_S,
        count: Count | None = None,
        worker: type[Worker] = Worker,
        stack: Stack | None = None,
    ) -> None:
        self.stack = stack or Stack()
        self._worker = worker
        self.count = count or Count()
        self._patience = patience
        self._seed = ""
        self._undisturbed = ""  # sha256 of the aggregate
        self._failed_over = False

    async def __aenter__(self) -> Self:
        await self.stack.__aenter__()
        self.fleet = await Fleet(self.stack.gateway, self._worker).__aenter__()
        self.operator = OperatorClient(self.stack.gateway, patience=self._patience)
        try:
            self._seed = (await self.operator.put_model(seed_model())).model_id
            await self.run(())
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.fleet.__aexit__(kind, error, trace)
        await self.operator.close()
        await self.stack.__aexit__(kind, error, trace)

    async def run(self, faults: Sequence[Fault]) -> Outcome:
        """One session with these faults, one after the other.

        AssertionError: a promise is broken. NotReached: a second fault could not be made.
        """
        errors = self.fleet.errors
        self._failed_over = any(fault.how is How.FAILOVER for fault in faults)
        if faults:
            await self.stack.conductor.arm(faults[0].point)
        running = asyncio.create_task(self._session(), name="session")
        struck: list[Struck] = []
        begun = time.monotonic()
        takeover: float | None = None
        missed: NotReached | None = None
        try:
            try:
                takeover = await self._strike_all(faults, running, struck)
            except NotReached as error:
                missed = error
            session = await running
            seconds = time.monotonic() - (struck[0].at if struck else begun)
        finally:
            running.cancel()
            self.stack.conductor.arm_next(None)
            await asyncio.gather(*(one.recovered for one in struck))
        await self._count(session)
        await self._verify(session)
        if missed is not None:
            raise missed
        return Outcome(seconds, takeover, self.fleet.errors - errors)

    async def _strike_all(
        self, faults: Sequence[Fault], running: asyncio.Task[pb.Session], struck: list[Struck]
    ) -> float | None:
        """Each fault at its step, noted in `struck`. Returns how long the job had no owner."""
        takeover = None
        points = [fault.point for fault in faults]
        for fault, following in zip_longest(faults, points[1:]):
            pid = await self._someone_at(fault.point, running)
            await self.check_confirmed()
            owner = await self._owner()
            name = name_of(self.stack, pid) if fault.victim == "self" else fault.victim
            owned = name in COMBINERS and _is_process(owner, self.stack.programs[name].pid)
            if struck and fault.how is How.DRAIN:
                await struck[-1].recovered  # one after the other, as in a rolling restart
            struck.append(await strike(self.stack, name, fault.how))
            self.stack.conductor.arm_next(following)
            if owned and takeover is None:
                takeover = await self._taken_over(owner, running, struck[-1].at)
        return takeover

    async def _session(self) -> pb.Session:
        """Its end. AssertionError: it had none, so nobody will ever see its updates."""
        try:
            async with asyncio.timeout(self._patience):
                session_id = str(uuid.uuid4())
                await self.operator.start_session(
                    config(self._patience), model_id=self._seed, session_id=session_id
                )
                return await self.operator.wait_session(session_id)
        except TimeoutError:
            self.count.add([0] * CLIENTS)
            raise AssertionError(f"the session did not end in {self._patience:g} s") from None

    async def _someone_at(self, point: Point, running: asyncio.Task[pb.Session]) -> int:
        reached = asyncio.ensure_future(self.stack.conductor.reached())
        try:
            await asyncio.wait({reached, running}, timeout=REACH_S, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
                # What the owner removes after its commit may take longer than the rest of the session.
                await asyncio.wait({reached}, timeout=AFTER_S)
            if running.done() and not reached.done():
                raise NotReached(f"nobody came to this step: {point}")
            assert reached.done(), f"nobody came to this step: {point}, and the session goes on"
            return reached.result()
        finally:
            reached.cancel()

    # --- the promises

    async def check_confirmed(self) -> None:
        """What a client was told to be received is in the journal, now and not a little later."""
        await self.fleet.round_trip()
        confirmed = self.fleet.confirmed()
        recorded = await self._recorded()
        for task, update in confirmed.items():
            assert recorded.get(task, update) == update, f"confirmed and not recorded: {update}"

    async def _recorded(self) -> Mapping[str, str]:
        """Task id -> update id ("" if none) of the jobs whose journals are there."""
        async with self.stack.state as state:
            keys = [key async for key in state.scan_iter("fc:clients:*", count=1000)]
            rows = [json.loads(row) for key in keys for row in await state.hvals(key)]
        return {row[1]: row[2] for row in rows}

    async def _owner(self) -> str:
        """The replica that owns the job, or the session while there is no job; empty if nobody does."""
        async with self.stack.state as state:
            leases = await state.hgetall("fc:leases")
        owners = {work.partition(":")[0]: lease.split(" ", 2)[2] for work, lease in leases.items()}
        return str(owners.get("job", owners.get("session", "")))

    async def _taken_over(self, owner: str, running: asyncio.Task[pb.Session], since: float) -> float | None:
        while not running.done():
            if await self._owner() not in (owner, ""):
                return time.monotonic() - since
            await asyncio.sleep(LOOK_S)
        return None

    async def _count(self, session: pb.Session) -> None:
        """Before anything is verified: what is wrong is to be counted, too."""
        shares = [0.0] * CLIENTS
        if session.model_id not in ("", self._seed):
            shares = _shares_in(await download_bytes(self.operator.link, session.model_id))
        self.count.add(times_in(shares))

    async def _verify(self, session: pb.Session) -> None:
        self.fleet.check()
        assert (session.state, session.failed_rounds) == (pb.SUCCEEDED, 0), f"session: {session}"
        jobs = await self.operator.list_jobs(session_id=session.session_id)
        assert [job.kind for job in jobs] == [pb.TRAINING, pb.VALIDATION], jobs
        for job in jobs:
            assert job.state == pb.SUCCEEDED, job
            assert sorted(job.accepted) == sorted(NAMES), job
            assert not [*self._held_against(job), *job.failed, *job.unrecorded], job
        await self.check_confirmed()
        await self._verify_model(session, jobs[0])
        await self._verify_nothing_is_left()

    def _held_against(self, job: pb.Job) -> list[pb.Outcome]:
        """Rejections. A failover takes back tasks that clients work on; they are asked again, and what they
        answer to the first task counts for nothing.
        """
        taken_back = ("not_asked", "duplicate") if self._failed_over else ()
        return [rejected for rejected in job.rejected if rejected.reason not in taken_back]

    async def _verify_model(self, session: pb.Session, job: pb.Job) -> None:
        models = await self.operator.list_models(session_id=session.session_id)
        assert [model.model_id for model in models] == [job.model_id], f"models of one round: {models}"
        assert session.model_id == job.model_id, f"{session} {job}"
        assert len(models[0].client_metrics) == CLIENTS, models[0]
        content = await download_bytes(self.operator.link, job.model_id)
        shares = _shares_in(content)
        assert shares == expected_shares(), f"how often each client is in the aggregate: {times_in(shares)}"
        sha = hashlib.sha256(content).hexdigest()
        self._undisturbed = self._undisturbed or sha
        assert sha == self._undisturbed, "the aggregate's bytes differ from the undisturbed run's"

    async def _verify_nothing_is_left(self) -> None:
        async with self.stack.state as state:
            left = await left_in(state)
        assert not left, f"left in Redis: {left}"
        ours = {program.pid for program in self.stack.programs.values() if program.alive}
        found = {child.pid for child in psutil.Process().children() if child.is_running()}
        assert ours <= found, f"processes that are gone: {ours - found}"


async def left_in(state: redis.asyncio.Redis) -> list[str]:
    """Tasks, running jobs and sessions, and their leases."""
    tasks = [key async for key in state.scan_iter("fc:tasks:*", count=1000)]
    running = [*await state.smembers("fc:running:job"), *await state.smembers("fc:running:session")]
    leases = [work for work in await state.hkeys("fc:leases") if not work.startswith("replica:")]
    return [*tasks, *running, *leases]


def _shares_in(aggregate: bytes) -> list[float]:
    """Of each client."""
    with np.load(io.BytesIO(aggregate)) as arrays:
        return [float(share) for share in arrays["who"]]


def _is_process(replica: str, pid: int) -> bool:
    """Whether a replica's name (host-pid-random) is that of this process."""
    return replica.split("-")[-2:-1] == [str(pid)]
