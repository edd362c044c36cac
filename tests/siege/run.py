"""The siege: `python -m tests.siege.run --minutes 10 --write docs/siege.md`.

Two attackers by turns do all that is in `attacks.py` while ten honest clients take part in rounds, for so
many minutes, and then again; then what the processes hold is compared. `--short` makes
each attack once, for some seconds, and asks only that all rounds end and no process dies. `--only NAME` makes
one attack, in all its ways, and asks the same.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.siege.attacks import ATTACKS
from tests.siege.report import Result, page
from tests.siege.siege import Died, Siege, Turn, turns

SHORT_TURN_S: Final = 7.0
SHORT_SESSIONS: Final = 2
SESSIONS: Final = 8


async def besiege(plans: Sequence[Sequence[Turn]], seconds: float, *, sessions: int) -> Result:
    """One siege for each plan; what is held is looked at only if there is something to compare."""
    result = Result(seconds)
    async with Siege() as siege:
        result.undisturbed = await siege.undisturbed(sessions)
        print(f"undisturbed: median {result.undisturbed:.2f} s a round", flush=True)
        for plan in plans:
            before = len(siege.rounds.done)
            result.lines.append(await siege.attacked(plan, seconds))
            during = [one.seconds for one in siege.rounds.done[before:]]
            result.medians.append(statistics.median(during) if during else None)
            if len(plans) > 1:
                result.held.append(await siege.held())
        result.broken = tuple(siege.rounds.broken)
        result.how = dict(siege.limits.how)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", choices=ATTACKS)
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    plan = [turn for turn in turns(every=not options.short) if options.only in (None, turn.attack)]
    plans = [plan] if options.short or options.only else [plan, plan]
    seconds = SHORT_TURN_S if options.short else options.minutes * 60 / len(plans[0])
    measured = len(plans) > 1
    try:
        result = asyncio.run(besiege(plans, seconds, sessions=SESSIONS if measured else SHORT_SESSIONS))
    except Died as error:
        sys.exit(f"FAILED: {error}")
    text = page(result)
    print(text)
    if options.write:
        options.write.write_text(text, "utf-8")
    if troubles := result.troubles(measured=measured):
        sys.exit("FAILED:\n" + "\n".join(troubles))


if __name__ == "__main__":
    main()
