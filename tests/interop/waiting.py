"""Clients whose stack is not ready, or goes away: none ends, none asks too often, and all join later."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from tests.faults.stack import COMBINERS
from tests.interop.eras import NAMES
from tests.interop.federation import LOOK_S, Federation, check_whole
from tests.interop.taps import Tap

# Longer than any client waits between two requests for its assignment, so that each has asked again.
PHASE_S: Final = 12.0
OUTAGE_S: Final = 20.0
MOST_A_SECOND: Final = 2.0


@dataclass(frozen=True)
class Waiting:
    """Attributes:
    rates: of each phase and client, requests a second in the five seconds that had most.
    joined: seconds from when the stack was ready.
    """

    rates: dict[str, dict[str, float]]
    joined: dict[str, float]


async def waiting(federation: Federation) -> Waiting:
    """The discovery is up before everything else, and there is no package yet."""
    stack = federation.stack
    for name in (*COMBINERS, "redis", "discovery"):
        await stack.programs[name].kill()
    await stack.programs["discovery"].start()
    await stack.programs["discovery"].ready()
    await federation.start()
    rates = {"no combiner, no package": await _phase(federation, stack.assignments)}
    for name in COMBINERS:
        await stack.programs[name].start()
    rates["combiners without Redis"] = await _phase(federation, stack.assignments)
    await stack.programs["redis"].start()
    for name in COMBINERS:
        await stack.programs[name].ready()
    rates["no package"] = await _phase(federation, stack.assignments)
    await stack.put_package()
    joined = dict(await federation.joined(within=60))
    check_whole(await federation.round(NAMES))
    await federation.stop()
    return Waiting(rates, joined)


async def outage(federation: Federation) -> Waiting:
    """Both combiners are away, and clients that were connected find only the gateway."""
    stack = federation.stack
    await federation.start()
    await federation.joined()
    for name in COMBINERS:
        await stack.programs[name].kill()
    rates = {"no combiner behind the gateway": await _phase(federation, stack.calls, OUTAGE_S)}
    for name in COMBINERS:
        await stack.programs[name].start()
    begun = time.monotonic()
    for name in COMBINERS:
        await stack.programs[name].ready()
    joined = dict(await _back_anywhere(federation, begun))
    check_whole(await federation.round(NAMES))
    await federation.stop()
    return Waiting(rates, joined)


async def _phase(federation: Federation, tap: Tap, seconds: float = PHASE_S) -> dict[str, float]:
    """What each client asks in so many seconds from when all have asked. A rate takes its time to measure."""
    begun = time.monotonic()

    async def all_ask() -> bool:
        federation.check_alive()
        return all(tap.calls[name] and tap.calls[name][-1] >= begun for name in NAMES)

    await federation.until(all_ask, "all clients to ask")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        federation.check_alive()
        await asyncio.sleep(LOOK_S)
    rates = {name: tap.fastest(name, begun) for name in NAMES}
    assert all(rate <= MOST_A_SECOND for rate in rates.values()), f"requests a second: {rates}"
    return rates


async def _back_anywhere(federation: Federation, since: float) -> dict[str, float]:
    seconds = dict[str, float]()

    async def all_there() -> bool:
        for combiner in COMBINERS:
            for name in await federation.streams_at(combiner):
                seconds.setdefault(name, time.monotonic() - since)
        federation.check_alive()
        return seconds.keys() == set(NAMES)

    await federation.until(all_there, "all clients to be back", 120)
    return seconds
