"""Each era alone, and all of them in one session."""

from __future__ import annotations

import json
from collections.abc import Collection

from tests.interop.eras import BY_NAME, ERAS, NAMES
from tests.interop.federation import Federation, Round, check_whole


async def alone(federation: Federation) -> dict[str, float]:
    """Seconds of the session with each as its only client: training and validation."""
    seconds = {}
    for era in ERAS:
        await federation.start([era.name])
        await federation.joined([era.name])
        done = await federation.round([era.name])
        check_whole(done, [era.name])
        check_validated(done, [era.name])
        seconds[era.name] = done.seconds
        await federation.stop([era.name])
    return seconds


async def together(federation: Federation) -> float:
    """Seconds of the session with all of them."""
    await federation.start()
    await federation.joined()
    done = await federation.round(NAMES)
    check_whole(done)
    check_validated(done, NAMES)
    federation.check_alive()
    await federation.stop()
    return done.seconds


def check_validated(done: Round, names: Collection[str]) -> None:
    """What each said is what the aggregate holds, and is kept with the job."""
    assert done.validation is not None
    answers = {answer.client: json.loads(answer.data) for answer in done.validation.answers}
    wanted = {
        name: {"index": BY_NAME[name].index, "share": done.shares[BY_NAME[name].index]} for name in names
    }
    assert answers == wanted, answers
