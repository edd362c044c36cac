"""One of two combiners is killed behind the gateway: which eras go on, and which are asked again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tests.faults.stack import COMBINERS
from tests.interop.eras import FIRST, NAMES
from tests.interop.federation import Federation, check_whole

# As long as a client may be away by default, and more: a training that takes longer must not be given up.
LONG_S: Final = 12.0
KILLED, OTHER = COMBINERS


@dataclass(frozen=True)
class Killed:
    """What became of the clients.

    Attributes:
        victim: the combiner that was killed.
        back: seconds until it had a stream at the other replica.
        trainings: of the round that was running, or of the next one.
    """

    victim: str
    back: Mapping[str, float]
    trainings: Mapping[str, int]


@dataclass
class _Moment:
    """What holds the clients there."""

    name: str
    reach: Callable[[Federation], Awaitable[str]]
    victim: str = KILLED
    release: Callable[[Federation], None] = field(default=lambda federation: None)
    linger: Callable[[Federation], Awaitable[None]] | None = None


async def killed(federation: Federation) -> dict[str, Killed]:
    """By what the clients are doing. After each kill a session ends well, and nobody had to be restarted."""
    found = {}
    for moment in MOMENTS:
        found[moment.name] = await _kill(federation, moment)
        print(f"  {moment.name}: {found[moment.name]}", flush=True)
    await federation.stop()
    return found


async def _kill(federation: Federation, moment: _Moment) -> Killed:
    await _all_on_one(federation)
    session = await moment.reach(federation)
    await federation.stack.programs[moment.victim].kill()
    begun = time.monotonic()
    survivor = OTHER if moment.victim == KILLED else KILLED
    back = asyncio.create_task(federation.back_at(survivor, begun))
    try:
        if moment.linger is not None:
            await moment.linger(federation)
    finally:
        moment.release(federation)
    done = await federation.end(session) if session else None
    seconds = await back
    await federation.revive(moment.victim)
    if done is None:
        done = await federation.round(NAMES)
    trainings = {name: federation.control.said(name, "training") for name in NAMES}
    check_whole(done, again=[name for name, times in trainings.items() if times > 1])
    federation.check_alive()
    return Killed(moment.victim, seconds, trainings)


async def _all_on_one(federation: Federation) -> None:
    """New clients, for FEDn 0.33 waits longer each time; their streams are all at `KILLED`."""
    await federation.stop()
    federation.control.forget()
    await federation.stack.programs[OTHER].close()
    await federation.start()
    await federation.joined()
    await federation.revive(OTHER)
    at = await federation.streams_at(KILLED)
    assert at == set(NAMES), f"streams at {KILLED}: {at}"


async def _idle(federation: Federation) -> str:
    return ""


async def _training(federation: Federation) -> str:
    federation.control.hold()
    session = await federation.begin(len(NAMES))
    await federation.until_said(NAMES, "training")
    return session


async def _long(federation: Federation) -> None:
    """Those that come back while they train are back, and the others have been away for long."""
    begun = time.monotonic()
    await federation.back_at(OTHER, begun, FIRST)
    await asyncio.sleep(max(0.0, begun + LONG_S - time.monotonic()))


async def _uploading(federation: Federation) -> str:
    """All are in Upload: the modelstore hears nothing, and the gateway holds a call of each."""
    session = await _training(federation)
    federation.stack.hold("modelstore-1")
    federation.control.release()
    await federation.until_said(NAMES, "trained")
    await federation.until_uploading(len(NAMES))
    return session


async def _sending(federation: Federation) -> str:
    """All are in SendModelUpdate at one replica, and Redis does not answer it.

    The gateway gives calls to the replica that has fewest, and streams are calls: so it is the other one.
    """
    session = await _training(federation)
    federation.stack.hold("redis")
    federation.control.release()
    await federation.until_said(NAMES, "trained")
    await federation.until_serving(OTHER, "SendModelUpdate", len(NAMES))
    return session


MOMENTS: Final = (
    _Moment("idle", _idle),
    _Moment("in training", _training, release=lambda f: f.control.release(), linger=_long),
    _Moment("in Upload", _uploading, release=lambda f: f.stack.release("modelstore-1")),
    _Moment("in SendModelUpdate", _sending, victim=OTHER, release=lambda f: f.stack.release("redis")),
)
