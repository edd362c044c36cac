"""Attacks by turns while rounds go on, and what the processes hold before and afterwards."""

from __future__ import annotations

import asyncio
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import psutil

from fedcombiner.client.operator import OperatorClient
from tests.faults.stack import COMBINERS
from tests.siege.attacks import ATTACKS, large_answers, takes_part
from tests.siege.honest import HONEST, MEMBER, Rounds
from tests.siege.limits import Limits, scratch_bytes
from tests.siege.stack import OPERATOR_TOKEN, SERVICES, SiegeStack

RATE: Final = 20e6  # bytes a second
ATTACKER_CORES: Final = 0.5
OUTAGE_S: Final = 3.0
LOOK_S: Final = 0.2
SETTLE_S: Final = 30.0
STRANGER: Final = "stranger"


@dataclass(frozen=True)
class Turn:
    """One attack: by the stranger, who has no token, or by the member; through the gateway or past it."""

    attack: str
    who: str
    past: bool

    def __str__(self) -> str:
        return f"{self.attack} by the {self.who}, {'past' if self.past else 'through'} the gateway"


@dataclass(frozen=True)
class Line:
    """The result of a turn. `median` is None if no round ended in it."""

    turn: Turn
    sent: int
    rounds: int
    median: float | None
    broken: Sequence[str]


class Died(AssertionError):
    """A process of the stack is gone."""


def turns(*, every: bool) -> list[Turn]:
    """`every` attack by both attackers in both ways; or each attack once, attacker and way by turns."""
    ways = [(who, past) for past in (False, True) for who in (STRANGER, MEMBER)]
    plan = []
    for number, attack in enumerate(ATTACKS):
        mine = ways if every else [ways[number % len(ways)]]
        if attack == takes_part.__name__:
            mine = [(MEMBER, False)]
        plan += [Turn(attack, who, past) for who, past in mine]
    return plan


class Siege:
    """A stack with its clients and rounds, and attacks on it. Use as `async with`."""

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        try:
            self.limits = await self._stack.enter_async_context(Limits())
            self.stack = await self._stack.enter_async_context(SiegeStack(self.limits))
            operator = OperatorClient(self.stack.gateway, token=OPERATOR_TOKEN, patience=60)
            self._operator = await self._stack.enter_async_context(operator)
            rounds = Rounds(self.stack.gateway, self._operator)
            self.rounds = await self._stack.enter_async_context(rounds)
        except BaseException:
            await self._stack.aclose()
            raise
        self._pids = {name: program.pid for name, program in self.stack.programs.items()}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    async def undisturbed(self, sessions: int) -> float:
        """The median seconds of a round that nobody attacks."""
        await self.rounds.session()  # everything is warm then
        before = len(self.rounds.done)
        for _ in range(sessions):
            await self.rounds.session()
        return statistics.median(one.seconds for one in self.rounds.done[before:])

    async def attacked(self, plan: Sequence[Turn], seconds: float) -> list[Line]:
        """Each turn for so many seconds, while rounds go on; the last of them ends well, too."""
        stop = asyncio.Event()
        going_on = asyncio.create_task(self.rounds.run(stop), name="rounds")
        lines: list[Line] = []
        try:
            for turn in plan:
                lines.append(await self._attack(turn, seconds, going_on))
                print(_said(lines[-1]), flush=True)
            stop.set()
            await going_on
        finally:
            going_on.cancel()
            await asyncio.wait([going_on])
        return lines

    async def _attack(self, turn: Turn, seconds: float, going_on: asyncio.Task[None]) -> Line:
        done, broken = len(self.rounds.done), len(self.rounds.broken)
        self.rounds.spread = turn.attack == takes_part.__name__
        attacker = await self._begin(turn, seconds)
        outage = asyncio.create_task(self._outage(turn), name="outage of Redis")
        try:
            while attacker.returncode is None:
                await asyncio.wait({outage, going_on}, timeout=LOOK_S, return_when=asyncio.FIRST_EXCEPTION)
                self._check(turn)
                if going_on.done():
                    going_on.result()
            output = await attacker.stdout.read() if attacker.stdout else b""
        finally:
            self.rounds.spread = False
            if attacker.returncode is None:
                attacker.kill()
            await asyncio.gather(outage, attacker.wait())
        assert attacker.returncode == 0, f"the attacker failed: {turn}"
        ended = [one.seconds for one in self.rounds.done[done:]]
        median = statistics.median(ended) if ended else None
        return Line(turn, int(output or 0), len(ended), median, tuple(self.rounds.broken[broken:]))

    async def _begin(self, turn: Turn, seconds: float) -> asyncio.subprocess.Process:
        member = turn.who == MEMBER
        target = self.stack.target(
            COMBINERS[member] if turn.past else None,
            token=self.rounds.member_token if member else "",
            name=MEMBER if member else HONEST[0],
            model_id=self.rounds.seed,
        )
        words = (turn.attack, str(seconds), str(RATE), target.to_json())
        attacker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.siege.attacker", *words), stdout=asyncio.subprocess.PIPE
        )
        self.limits.limit_cpu(attacker.pid, ATTACKER_CORES)
        return attacker

    async def _outage(self, turn: Turn) -> None:
        """Redis says nothing for a moment in the middle of a flood of answers."""
        if turn.attack != large_answers.__name__:
            return
        redis = self.stack.programs["redis"]
        await asyncio.sleep(2.0)
        redis.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(OUTAGE_S)
        finally:
            redis.signal(signal.SIGCONT)

    def _check(self, turn: Turn) -> None:
        for name, program in self.stack.programs.items():
            if not program.alive or program.pid != self._pids[name]:
                raise Died(f"{name} ended during: {turn} (see {program.log})")

    async def held(self) -> Mapping[str, int]:
        """Memory of the processes by name, after a quiet while and a session."""
        await asyncio.sleep(SETTLE_S)
        await self.rounds.session()
        found: dict[str, int] = {}
        for name in (*SERVICES, "gateway"):
            process = psutil.Process(self.stack.programs[name].pid)
            found[f"memory of {name}, bytes"] = process.memory_info().rss
            found[f"open files of {name}"] = process.num_fds()
        async with self.stack.state as state:
            found["memory of Redis, bytes"] = (await state.info("memory"))["used_memory"]
        found["scratch disk, bytes"] = scratch_bytes(self.stack.directory / "scratch")
        return found


def _said(line: Line) -> str:
    median = "no round ended" if line.median is None else f"median {line.median:.2f} s"
    broken = "".join(f"\n    BROKEN: {what}" for what in line.broken)
    return f"{line.turn}: {line.sent / 1e6:.0f} MB sent, {line.rounds} rounds, {median}{broken}"
