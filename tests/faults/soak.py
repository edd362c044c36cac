"""Random faults for a long time: `python -m tests.faults.soak --minutes 60 --seed 1`.

Sessions run one after the other on one stack. Every 5 to 20 s something happens to a program that is well;
up to three programs are ill at a time. Every session is verified as in the matrix; the memory of the services
is looked at whenever one has ended.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import psutil

from tests.faults.faults import How, Struck, strike
from tests.faults.trial import Count, Trial

PAUSE_S: Final = (5.0, 20.0)
ILL_AT_ONCE: Final = 3
WARM_UP: Final = 1 / 4  # of the time
# How much more memory a service may need after the warm-up than in it.
FLAT: Final = 1.3
SERVICES: Final = ("combiner-1", "combiner-2", "modelstore-1")


@dataclass
class Tally:
    """What happened so far."""

    count: Count = field(default_factory=Count)
    errors: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    memory: dict[str, list[tuple[float, int]]] = field(default_factory=dict)  # name -> (time, bytes)

    def report(self) -> str:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(self.faults.items()))
        return (
            f"{self.faults.total()} faults ({kinds}) in {self.count}; "
            f"SendModelUpdate calls that a client saw fail: {self.errors}"
        )


class Chaos:
    """Makes the faults. `ill` are being recovered from."""

    def __init__(self, trial: Trial, tally: Tally, rng: random.Random) -> None:
        self._trial = trial
        self._tally = tally
        self._rng = rng
        self._ill: dict[str, Struck] = {}

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._rng.uniform(*PAUSE_S))
            self._ill = {name: struck for name, struck in self._ill.items() if not _is_over(struck)}
            well = sorted(set(self._trial.stack.programs) - set(self._ill))
            if len(self._ill) < ILL_AT_ONCE:
                await self._strike(self._rng.choice(well))

    async def _strike(self, name: str) -> None:
        hows = [How.KILL, How.STOP, How.CUT] + ([How.DRAIN] if name in SERVICES else [])
        how = self._rng.choice(hows)
        print(f"{time.strftime('%H:%M:%S')}  {how} of {name}", flush=True)
        self._ill[name] = await strike(self._trial.stack, name, how)
        self._tally.faults[how] += 1

    async def settle(self) -> None:
        await asyncio.gather(*(struck.recovered for struck in self._ill.values()))


def _is_over(struck: Struck) -> bool:
    """Raises what went wrong with the recovery."""
    if struck.recovered.done():
        struck.recovered.result()
    return struck.recovered.done()


async def soak(minutes: float, seed: int, tally: Tally) -> None:
    begun = time.monotonic()
    async with Trial(patience=20 * 60, count=tally.count) as trial:
        chaos = Chaos(trial, tally, random.Random(seed))
        making = asyncio.create_task(chaos.run(), name="chaos")
        try:
            while time.monotonic() - begun < minutes * 60:
                outcome = await trial.run(())
                tally.errors += outcome.errors
                _note_memory(trial, tally, time.monotonic() - begun)
                if making.done():
                    making.result()
        finally:
            making.cancel()
            await asyncio.wait([making])
            await chaos.settle()


def _note_memory(trial: Trial, tally: Tally, at: float) -> None:
    for name in SERVICES:
        program = trial.stack.programs[name]
        if program.alive:
            resident = psutil.Process(program.pid).memory_info().rss
            tally.memory.setdefault(name, []).append((at, resident))


def memory_grew(samples: Sequence[tuple[float, int]]) -> tuple[int, int, bool]:
    """Most bytes in the warm-up and after it, and whether that is more than is flat."""
    end = samples[-1][0] * WARM_UP
    before = max((resident for at, resident in samples if at <= end), default=samples[0][1])
    after = max(resident for at, resident in samples if at >= end)
    return before, after, after > before * FLAT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    tally = Tally()
    try:
        asyncio.run(soak(options.minutes, options.seed, tally))
    finally:
        print(tally.report())
    grew = False
    for name, samples in tally.memory.items():
        before, after, more = memory_grew(samples)
        grew = grew or more
        print(f"memory of {name}: at most {before >> 20} MiB in the warm-up, {after >> 20} MiB after it")
    sys.exit(grew)


if __name__ == "__main__":
    main()
