"""One attack as a process of its own: `python -m tests.siege.attacker NAME SECONDS RATE TARGET`.

The target is JSON. Prints how many bytes it has sent.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys

from tests.siege.attacks import ATTACKS
from tests.siege.target import Spending, Target


def main() -> None:
    name, seconds, rate, target = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    spending = Spending(float(rate), float(seconds))
    asyncio.run(_attack(name, Target(**json.loads(target)), spending))
    print(spending.sent)


async def _attack(name: str, target: Target, spending: Spending) -> None:
    await ATTACKS[name](target, spending)


if __name__ == "__main__":
    main()
