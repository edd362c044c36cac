"""What can be done to a process of the stack, and how it recovers."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from combiner.adapters.limits import SCHEMA

from tests.faults.conductor import Point
from tests.faults.replicated import ReplicatedStack
from tests.faults.service import LAYOUT
from tests.faults.stack import COMBINERS, Stack

RESTART_S: Final = 0.5  # what a supervisor takes to start a program again
STOPPED_S: Final = 15.0
CUT_S: Final = 9.0  # longer than a lease lives
DRAIN_S: Final = 10.0
LEFT_S: Final = 30.0
LAG_S: Final = 0.5  # in which the primary goes on alone
REFUSED: Final = 1  # the exit code


class How(StrEnum):
    KILL = "SIGKILL"
    STOP = "SIGSTOP 15 s"
    CUT = "cut off 9 s"
    DRAIN = "SIGTERM"
    UPGRADE = "upgrade"
    FAILOVER = "failover"


@dataclass(frozen=True)
class Fault:
    """At `point` something happens to `victim`: the process that came there (`self`), or another program by
    name.
    """

    point: Point
    victim: str
    how: How

    def __str__(self) -> str:
        """One name for each fault: a step of both services is the combiner's unless it says otherwise."""
        if self.victim == "self":
            return f"{self.how} of {self.point.role} {self.point.when} {self.point.step}"
        whose = " of modelstore" if self.point.role == "modelstore" else ""
        return f"{self.how} of {self.victim} {self.point.when} {self.point.step}{whose}"


@dataclass(frozen=True)
class Struck:
    """A fault that was done. `recovered` ends when the program is as it was before."""

    name: str
    at: float  # monotonic seconds
    recovered: asyncio.Task[None]


async def strike(stack: Stack, name: str, how: How) -> Struck:
    """Do it now; recovery goes on by itself."""
    at = time.monotonic()
    await _DO[how](stack, name)
    recovery = asyncio.create_task(_RECOVER[how](stack, name), name=f"{name} recovers from {how}")
    return Struck(name, at, recovery)


def name_of(stack: Stack, pid: int) -> str:
    return next(program.name for program in stack.programs.values() if program.pid == pid)


def other_combiner(name: str) -> str:
    return COMBINERS[1 - COMBINERS.index(name)]


async def _kill(stack: Stack, name: str) -> None:
    await stack.programs[name].kill()


async def _start_again(stack: Stack, name: str) -> None:
    await asyncio.sleep(RESTART_S)
    await stack.programs[name].start()
    await stack.programs[name].ready()


async def _stop(stack: Stack, name: str) -> None:
    stack.programs[name].signal(signal.SIGSTOP)


async def _go_on(stack: Stack, name: str) -> None:
    try:
        await asyncio.sleep(STOPPED_S)
    finally:
        stack.programs[name].signal(signal.SIGCONT)
    await stack.programs[name].ready()


async def _cut(stack: Stack, name: str) -> None:
    for wire in stack.wires[name]:
        await wire.cut()


async def _mend(stack: Stack, name: str) -> None:
    await asyncio.sleep(CUT_S)
    for wire in stack.wires[name]:
        await wire.mend()


async def _drain(stack: Stack, name: str) -> None:
    stack.programs[name].signal(signal.SIGTERM)


async def _drained(stack: Stack, name: str) -> None:
    """Exit 0 within `DRAIN_S`, and a new one."""
    begun = time.monotonic()
    async with asyncio.timeout(DRAIN_S + 5):
        code = await stack.programs[name].ended()
    seconds = time.monotonic() - begun
    assert (code, seconds < DRAIN_S) == (0, True), f"{name} ended with {code} after {seconds:.1f} s"
    await _start_again(stack, name)


async def _upgraded(stack: Stack, name: str) -> None:
    """Drained, and back as a version with a newer layout of the state. From its first step on the other
    combiner cannot go on: it ends, ends again when a supervisor starts it anew, and is upgraded as well.
    """
    new, old = stack.programs[name], stack.programs[other_combiner(name)]
    layout = str(int(new.env.get(LAYOUT, SCHEMA)) + 1)
    new.env[LAYOUT] = layout
    await _drained(stack, name)
    async with asyncio.timeout(LEFT_S):
        assert await old.ended() == REFUSED, f"{old.name} ended with {await old.ended()}"
    await old.start()
    assert await old.never_ready() == REFUSED, f"{old.name} ended with {await old.ended()}"
    old.env[LAYOUT] = layout
    await _start_again(stack, old.name)


async def _lag(stack: Stack, name: str) -> None:
    assert isinstance(stack, ReplicatedStack), "only a replicated Redis can fail over"
    await stack.lag()


async def _failed_over(stack: Stack, name: str) -> None:
    assert isinstance(stack, ReplicatedStack)
    await asyncio.sleep(LAG_S)
    await stack.fail_over()


_Do = Callable[[Stack, str], Awaitable[None]]
_DO: Mapping[How, _Do] = {
    How.KILL: _kill,
    How.STOP: _stop,
    How.CUT: _cut,
    How.DRAIN: _drain,
    How.UPGRADE: _drain,
    How.FAILOVER: _lag,
}
_RECOVER: Mapping[How, Callable[[Stack, str], Coroutine[object, object, None]]] = {
    How.KILL: _start_again,
    How.STOP: _go_on,
    How.CUT: _mend,
    How.DRAIN: _drained,
    How.UPGRADE: _upgraded,
    How.FAILOVER: _failed_over,
}
