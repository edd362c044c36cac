"""The clients of all eras on one stack, and sessions with them."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np

from fedcombiner.client.made_up import to_npz
from fedcombiner.client.operator import OperatorClient
from fedcombiner.client.transfer import download_bytes
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.faults.stack import COMBINERS
from tests.interop.clients import FednClient
from tests.interop.control import Control
from tests.interop.eras import BY_NAME, ERAS, NAMES
from tests.interop.stack import InteropStack

LOOK_S: Final = 0.05
SESSION_S: Final = 150.0
# More than one chunk of a transfer.
NOISE: Final = 400_000
# No round may need it: it would be the end of the test, too.
DEADLINE_S: Final = 140


@dataclass(frozen=True)
class Round:
    """What a session of one round came to.

    Attributes:
        training, validation: its jobs; there is no validation of a round that failed.
        shares: what the model's first array says: of each client its part.
        noise: the second array.
        seconds: from the start of the session to its end.
    """

    session: pb.Session
    training: pb.Job
    validation: pb.Job | None
    shares: Sequence[float]
    noise: np.ndarray
    seconds: float


class Federation:
    def __init__(self, stack: InteropStack, operator: OperatorClient, seed: str) -> None:
        self.stack = stack
        self.operator = operator
        self.control = Control(stack.directory / "control")
        self.clients = {
            era.name: FednClient(era, stack.directory / "clients", stack.discovery, self.control)
            for era in ERAS
        }
        stack.clients = {**self.clients}
        self._seed = seed

    # --- clients

    async def start(self, names: Collection[str] = NAMES) -> None:
        """Returns as soon as the processes exist."""
        for name in names:
            await self.clients[name].start()

    async def stop(self, names: Collection[str] = NAMES) -> None:
        """As the supervisor of a client does it, and until the stack does not count on them any more."""
        for name in names:
            await self.clients[name].close()
        await self.until(lambda: self._none_active(names), f"{', '.join(names)} to be gone", 30)

    async def _none_active(self, names: Collection[str]) -> bool:
        there = {client.client for client in await self.operator.list_clients() if client.streams}
        return not there & set(names)

    async def joined(self, names: Collection[str] = NAMES, within: float = 60.0) -> Mapping[str, float]:
        """Until each has a stream. Returns the seconds from now until then, of each."""
        begun, seconds = time.monotonic(), dict[str, float]()

        async def all_there() -> bool:
            for client in await self.operator.list_clients():
                if client.streams and client.active and client.client in names:
                    seconds.setdefault(client.client, time.monotonic() - begun)
            self.check_alive(names)
            return seconds.keys() == set(names)

        await self.until(all_there, f"{', '.join(names)} to join", within)
        return seconds

    async def streams_at(self, combiner: str) -> set[str]:
        """The clients with a stream at this replica, by what the replicas have told each other."""
        pid = str(self.stack.programs[combiner].pid)
        async with self.stack.state as state:
            keys = [key async for key in state.scan_iter("fc:streams:*", count=1000)]
            mine = [key for key in keys if key.split("-")[-2:-1] == [pid]]
            rows = [row for key in mine for row in await state.hvals(key)]
        return {row.partition(" ")[2] for row in rows}

    async def back_at(
        self, combiner: str, since: float, names: Collection[str] = NAMES, within: float = 90.0
    ) -> Mapping[str, float]:
        """Until each has a stream at this replica. Returns the seconds from `since` until then, of each."""
        seconds = dict[str, float]()

        async def all_there() -> bool:
            for name in await self.streams_at(combiner) & set(names):
                seconds.setdefault(name, time.monotonic() - since)
            self.check_alive(names)
            return seconds.keys() == set(names)

        await self.until(all_there, f"{', '.join(names)} to be back at {combiner}", within)
        return seconds

    async def revive(self, combiner: str) -> None:
        """Start a replica that is not there; returns when the gateway has seen it."""
        program = self.stack.programs[combiner]
        await program.start()
        await program.ready()

        async def seen() -> bool:
            return await self.stack.combiners_up() == len(COMBINERS)

        await self.until(seen, f"the gateway to see {combiner}")

    async def until_uploading(self, clients: int) -> None:
        async def all_in() -> bool:
            return await self.stack.uploads() >= clients

        await self.until(all_in, f"{clients} uploads at once")

    async def until_serving(self, combiner: str, method: str, calls: int) -> None:
        async def all_in() -> bool:
            return await self.stack.serving(combiner, method) == calls

        await self.until(all_in, f"{calls} calls of {method} at {combiner}", 30)

    def check_alive(self, names: Collection[str] = NAMES) -> None:
        for name in names:
            client = self.clients[name]
            assert client.alive, f"{name} exited with {client.exit_code}: see {client.log}"

    async def until(self, wanted: Callable[[], Awaitable[bool]], what: str, within: float = 60.0) -> None:
        try:
            async with asyncio.timeout(within):
                while not await wanted():
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise AssertionError(f"waited {within:g} s for {what}") from None

    async def until_said(self, names: Collection[str], word: str, within: float = 60.0) -> None:
        async def all_said() -> bool:
            return all(self.control.said(name, word) for name in names)

        await self.until(all_said, f"all of {', '.join(names)} to say {word}", within)

    # --- sessions

    async def begin(self, asked: int, **config: Any) -> str:
        """The id of a session of one round that asks so many clients, and wants them all."""
        whole = {
            "rounds": 1,
            "clients_required": asked,
            "clients_requested": asked,
            "round_timeout": DEADLINE_S,
            "max_failed_rounds": 1,
            **config,
        }
        return (await self.operator.start_session(whole, model_id=self._seed)).session_id

    async def end(self, session_id: str) -> Round:
        try:
            async with asyncio.timeout(SESSION_S):
                session = await self.operator.wait_session(session_id)
        except TimeoutError:
            jobs = await self.operator.list_jobs(session_id=session_id)
            raise AssertionError(f"the session did not end in {SESSION_S:g} s: {jobs}") from None
        jobs = {job.kind: job for job in await self.operator.list_jobs(session_id=session_id)}
        training = jobs[pb.TRAINING]
        shares, noise = await self._model(training.model_id)
        seconds = session.ended_at - session.started_at
        return Round(session, training, jobs.get(pb.VALIDATION), shares, noise, seconds)

    async def round(self, names: Collection[str], **config: Any) -> Round:
        """With these clients, who are the only active ones."""
        return await self.end(await self.begin(len(names), **config))

    async def _model(self, model_id: str) -> tuple[Sequence[float], np.ndarray]:
        if not model_id:
            return (), np.zeros(0)
        with np.load(io.BytesIO(await download_bytes(self.operator.link, model_id))) as arrays:
            return [float(share) for share in arrays["0"]], arrays["1"]


def seed_model() -> Mapping[str, np.ndarray]:
    return {"0": np.zeros(len(ERAS), np.float32), "1": np.zeros(NOISE, np.float32)}


def seed_bytes() -> bytes:
    return to_npz(dict(seed_model()))


def check_whole(done: Round, names: Collection[str] = NAMES, again: Collection[str] = ()) -> None:
    """Everybody trained, everybody is in the aggregate by the weight it gave, everybody validated.

    `again`: those who were asked twice, and whose second answer is refused for that.
    """
    assert done.session.state == pb.SUCCEEDED, done.session
    check_aggregate(done, names)
    assert not [*done.training.failed, *done.training.unrecorded], done.training
    refused = {(outcome.client, outcome.reason) for outcome in done.training.rejected}
    assert refused <= {(name, reason) for name in again for reason in ("late", "duplicate")}, done.training
    validation = done.validation
    assert validation is not None, "the model was not validated"
    assert validation.state == pb.SUCCEEDED, validation
    assert sorted(validation.accepted) == sorted(names), validation


def check_aggregate(done: Round, names: Collection[str]) -> None:
    """It is the weighted mean of what these clients trained, and of nothing else."""
    assert sorted(done.training.accepted) == sorted(names), done.training
    eras = [BY_NAME[name] for name in names]
    total = sum(era.num_examples for era in eras)
    wanted = [
        float(np.float32(float(Fraction(era.num_examples, total)))) if era in eras else 0.0 for era in ERAS
    ]
    assert list(done.shares) == wanted, f"who is in the aggregate: {done.shares}, not {wanted}"
    rows = [np.random.default_rng(era.index).standard_normal(NOISE, np.float32) for era in eras]
    weights = [era.num_examples for era in eras]
    mean = np.average(np.asarray(rows, np.float64), axis=0, weights=weights).astype(np.float32)
    # The mean in numpy's float64 may be the next number; ours is exact.
    np.testing.assert_array_max_ulp(done.noise, mean, maxulp=1)
