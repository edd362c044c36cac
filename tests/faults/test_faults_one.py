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


async def test_a_rolling_upgrade_to_a_newer_layout_changes_nothing() -> None:
    """In the middle of a round, and at the moment in which its owner has committed."""
    async with Trial() as trial:
        for step, when in (("jobs.receive", "before"), ("jobs.commit", "after")):
            await trial.run([Fault(Point("combiner", step, when), "self", How.UPGRADE)])
    assert (trial.count.sessions, trial.count.lost, trial.count.doubled) == (3, 0, 0)
