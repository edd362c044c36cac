"""FEDn's own clients on the whole stack: `python -m tests.interop.run`.

python -m tests.interop.run --write docs/interop.md     everything, and the page about it
python -m tests.interop.run --only killed               one part
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from fedcombiner.client.operator import OperatorClient
from tests.interop import alone, environments, failures, killed, waiting
from tests.interop.federation import Federation, seed_model
from tests.interop.report import markdown
from tests.interop.stack import InteropStack

PATIENCE_S: Final = 90.0

# In this order on one stack: the first begins without combiners and without a package.
PARTS: Final[Mapping[str, Callable[[Federation], Awaitable[Any]]]] = {
    "waiting": waiting.waiting,
    "killed": killed.killed,
    "outage": waiting.outage,
    "alone": alone.alone,
    "together": alone.together,
    "failures": failures.failures,
}


async def run(parts: list[str]) -> dict[str, Any]:
    """What was found, by part. Ends at the first part that does not hold: its stack is left for a look."""
    found = {}
    async with federation() as clients:
        if "waiting" not in parts:
            await clients.stack.put_package()
        for part in parts:
            begun = time.monotonic()
            found[part] = await PARTS[part](clients)
            print(f"{part}: {time.monotonic() - begun:.0f} s: {found[part]}", flush=True)
    return found


@asynccontextmanager
async def federation() -> AsyncIterator[Federation]:
    async with InteropStack() as stack, OperatorClient(stack.gateway, patience=PATIENCE_S) as operator:
        seed = (await operator.put_model(dict(seed_model()))).model_id
        made = Federation(stack, operator, seed)
        try:
            yield made
        except BaseException:
            print(f"the logs are in {stack.directory}", flush=True)
            raise
        finally:
            for client in made.clients.values():
                await client.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts")
    parser.add_argument("--write", type=Path, help="write what was found as a page; needs all parts")
    options = parser.parse_args()
    if options.write and set(options.only) != set(PARTS):
        sys.exit("--write needs all parts")
    begun = time.monotonic()
    print(f"environments: {environments.make_all():.0f} s", flush=True)
    found = asyncio.run(run(options.only))
    print(f"all: {time.monotonic() - begun:.0f} s")
    if options.write:
        options.write.write_text(markdown(found), "utf-8")


if __name__ == "__main__":
    main()
