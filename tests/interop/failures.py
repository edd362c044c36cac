"""Trainings that come to nothing, in every era: the round ends without them, and says who and why."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from fedcombiner.client.made_up import MadeUp
from fedcombiner.client.messages import Task
from fedcombiner.client.simulate import SimulatedFleet
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.interop.control import Mode
from tests.interop.eras import BY_NAME, ERAS, NAMES
from tests.interop.federation import Federation, Round, seed_bytes

# What remains to be done when all have failed; the deadline of the round is far behind it.
ENDED_S: Final = 45.0
WITNESS: Final = "witness"
CRASH: Final = "crash"
# FEDn's second generation ends when its training fails: it has no message for that.
ENDS: Final = frozenset(era.name for era in ERAS if era.generation == 2)


@dataclass(frozen=True)
class Failure:
    """Attributes:
    reasons: by client.
    seconds: from the failure to the end of the round.
    ended: the clients whose process ended.
    """

    reasons: dict[str, str]
    seconds: float
    ended: frozenset[str]


async def failures(federation: Federation) -> dict[str, Failure]:
    """By what went wrong in all of them at once; a client of ours is the only one that trains."""
    found = {}
    for mode in (Mode.EMPTY, Mode.FAILS):
        found[mode.value] = await _fail(federation, mode)
    found[CRASH] = await _fail(federation, None)
    await federation.stop()
    return found


async def _fail(federation: Federation, mode: Mode | None) -> Failure:
    control = federation.control
    control.forget()
    await federation.start([name for name in NAMES if not federation.clients[name].alive])
    await federation.joined()
    if mode is not None:
        for name in NAMES:
            control.set_mode(name, mode)
    control.hold()
    async with SimulatedFleet(1, federation.stack.gateway, workload=_witness, name=WITNESS) as fleet:
        await fleet.wait_connected(20)
        asked = len(NAMES) + 1
        session = await federation.begin(asked, clients_required=1, clients_requested=asked, validate=False)
        await federation.until_said(NAMES, "training")
        begun = time.time()
        if mode is None:
            for name in NAMES:
                await federation.clients[name].kill()
        control.release()
        done = await federation.end(session)
    ended = frozenset(name for name in NAMES if not federation.clients[name].alive)
    seconds = done.training.ended_at - begun
    return Failure(_reasons(done, mode), seconds, _checked(done, mode, seconds, ended))


def _witness(index: int) -> MadeUp:
    def update(_index: int, _task: Task) -> bytes:
        return seed_bytes()

    return MadeUp(index, update)


def _reasons(done: Round, mode: Mode | None) -> dict[str, str]:
    job = done.training
    assert job.state == pb.SUCCEEDED, job
    assert list(job.accepted) == [WITNESS], job
    reasons = {outcome.client: outcome.reason for outcome in job.failed}
    assert reasons == {name: _reason(name, mode) for name in NAMES}, job
    return reasons


def _reason(name: str, mode: Mode | None) -> str:
    if mode is Mode.EMPTY:
        return "empty_upload"
    if mode is Mode.FAILS and BY_NAME[name].generation == 1:
        return "client_failed"
    return "client_lost"


def _checked(done: Round, mode: Mode | None, seconds: float, ended: frozenset[str]) -> frozenset[str]:
    assert seconds < ENDED_S, f"the round ended after {seconds:.1f} s: {done.training}"
    wanted = {Mode.EMPTY: frozenset[str](), Mode.FAILS: ENDS, None: frozenset(NAMES)}[mode]
    assert ended == wanted, f"clients that ended: {sorted(ended)}, not {sorted(wanted)}"
    return ended
