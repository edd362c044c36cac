"""The stack as real processes, and its owner killed when it is about to commit: a part of `make faults`."""

from __future__ import annotations

import pytest

from tests.faults.conductor import Point
from tests.faults.faults import Fault, How
from tests.faults.trial import Trial

pytestmark = [pytest.mark.stack, pytest.mark.timeout(180)]


async def test_a_killed_and_a_drained_owner_change_nothing() -> None:
    async with Trial() as trial:
        commit = Point("combiner", "jobs.commit", "before")
        drained = await trial.run([Fault(commit, "self", How.DRAIN)])
        killed = await trial.run([Fault(commit, "self", How.KILL)])
    assert drained.takeover is not None
    assert killed.takeover is not None
    assert drained.takeover < killed.takeover
