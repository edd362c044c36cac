"""Which faults are tried where: every step of the life of a round, with everything that can fail there."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

from tests.faults.conductor import Point
from tests.faults.faults import Fault, How
from tests.faults.stack import COMBINERS

Case = tuple[Fault, ...]
Programs = frozenset[str]  # of `stack.programs`

SELF: Final = "self"
BOTH: Final = ("before", "after")
HARD: Final = (How.KILL, How.STOP, How.CUT)
COMBINER_STATE: Final = (
    "sessions.start",
    "sessions.claim",
    "sessions.advance",
    "jobs.claim",
    "jobs.open",
    "tasks.claim",
    "jobs.receive",
    "jobs.accept",
    "jobs.close",
    "jobs.commit",
    "jobs.answer",
    "jobs.end",
    "leases.renew",
    "roster.beat",
)
COMBINER_STORE: Final = (
    "store.file.models",
    "store.head",
    "store.file.uploads",
    "store.write",
    "store.commit",
    "store.delete",
)
MODELSTORE: Final = ("store.head", "store.write", "store.commit")
# Where a call of a client is on its way through the gateway.
THROUGH_GATEWAY: Final = frozenset(
    {Point("combiner", "jobs.receive", when) for when in BOTH}
    | {Point("combiner", "jobs.answer", when) for when in BOTH}
    | {Point("modelstore", "store.write", when) for when in BOTH}
)
# Where a combiner is upgraded while it works on a round.
UPGRADED: Final = (
    "jobs.open",
    "jobs.receive",
    "jobs.accept",
    "jobs.close",
    "jobs.commit",
    "sessions.advance",
)
# Where Redis fails over to a replica that lags.
FAILED_OVER: Final = (
    "sessions.start",
    "jobs.open",
    "jobs.receive",
    "jobs.accept",
    "jobs.close",
    "jobs.commit",
    "sessions.advance",
    "jobs.answer",
    "jobs.end",
)
# The part for every change: what promise 1 stands on.
CORE: Final = frozenset({"jobs.receive", "jobs.accept", "jobs.commit"})


def points() -> Iterator[Point]:
    for step in (*COMBINER_STATE, *COMBINER_STORE):
        yield from (Point("combiner", step, when) for when in BOTH)
    for step in MODELSTORE:
        yield from (Point("modelstore", step, when) for when in BOTH)
    yield Point("modelstore", "store.read", "after")


def victims(point: Point, programs: Programs) -> list[str]:
    """Who can fail there, of itself, Redis, and what else there is."""
    if point.role == "modelstore" and "modelstore" not in programs:
        return []
    backend = "store" if point.step.startswith("store.") else "redis"
    needed = [backend, *(["gateway"] if point in THROUGH_GATEWAY else [])]
    return [SELF, *(name for name in needed if name in programs | {"redis"})]


def single(programs: Programs) -> Iterator[Case]:
    for point in points():
        for victim in victims(point, programs):
            for how in (*HARD, *(_in_order(point) if victim == SELF else ())):
                yield (Fault(point, victim, how),)


def failovers(_programs: Programs) -> Iterator[Case]:
    """On a stack whose Redis has a replica."""
    for step in FAILED_OVER:
        for when in BOTH:
            yield (Fault(Point("combiner", step, when), "redis", How.FAILOVER),)


def needs_a_replica(case: Case) -> bool:
    return any(fault.how is How.FAILOVER for fault in case)


def _in_order(point: Point) -> Iterator[How]:
    """How a combiner is stopped by its operator."""
    if point.role == "combiner":
        yield How.DRAIN
        if point.step in UPGRADED:
            yield How.UPGRADE


def in_a_row(programs: Programs, *, seed: int = 5) -> Iterator[Case]:
    """A second fault while the first is being recovered from: along the round, and the new owner at the place
    of the old one.
    """
    rng = random.Random(seed)
    steps = [
        Point("combiner", step, when)
        for step in ("jobs.open", "jobs.receive", "jobs.accept", "jobs.close", "jobs.commit")
        for when in BOTH
    ]
    for first, second in pairwise(steps):
        hows = rng.choices((How.KILL, How.STOP, How.CUT), k=2)
        yield tuple(
            Fault(point, rng.choice(victims(point, programs)), how)
            for point, how in zip((first, second), hows, strict=True)
        )
    yield from _restarts()
    for step in ("jobs.accept", "jobs.close", "jobs.commit"):
        point = Point("combiner", step, "before")
        for how in HARD:
            yield Fault(point, SELF, how), Fault(point, SELF, How.KILL)


def _restarts() -> Iterator[Case]:
    """One combiner after the other in the middle of a round."""
    steps = ("jobs.open", "jobs.receive", "jobs.accept", "jobs.close", "jobs.commit")
    for first, second in pairwise(Point("combiner", step, "before") for step in steps):
        yield Fault(first, COMBINERS[0], How.DRAIN), Fault(second, COMBINERS[1], How.DRAIN)


def core(programs: Programs) -> list[Case]:
    """A part that fits into a few minutes: every kill of a combiner and of Redis at the steps of the journal,
    every fault at the core ones, and kills at two steps of the modelstore.
    """
    return [case for case in single(programs) if _is_core(case[0])]


PARTS: Final[Mapping[str, Callable[[Programs], list[Case]]]] = {
    "all": lambda programs: [*single(programs), *failovers(programs), *in_a_row(programs)],
    "core": core,
    "failover": lambda programs: list(failovers(programs)),
    "single": lambda programs: list(single(programs)),
}


def _is_core(fault: Fault) -> bool:
    point = fault.point
    if point.step in CORE and fault.victim == SELF and fault.how is not How.UPGRADE:
        return True
    if fault.how is not How.KILL:
        return False
    return point.step.startswith(("jobs.", "sessions.")) or point.step == "store.commit"


def chosen(cases: Sequence[Case], pattern: str) -> list[Case]:
    """Those whose description has all words of the pattern."""
    return [case for case in cases if all(word in describe(case) for word in pattern.split())]


def describe(case: Case) -> str:
    return ", then ".join(str(fault) for fault in case)
