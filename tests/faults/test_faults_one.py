"""The stack as real processes, and its owner killed when it is about to commit: a part of `make faults`."""

from __future__ import annotations

import pytest

from tests.faults.conductor import Point
from tests.faults.faults import Fault, How
from tests.faults.fleet import ImpatientWorker
from tests.faults.replicated import ReplicatedStack
from tests.faults.stack import programs
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


@pytest.mark.skipif("modelstore" not in programs(), reason="without HAProxy combiners are the modelstores")
@pytest.mark.parametrize("how", [How.KILL, How.STOP, How.CUT])
async def test_clients_whose_upload_the_modelstore_broke_are_asked_again(how: How) -> None:
    """Old ones, which do not try again by themselves. Nobody else is ill."""
    async with Trial(worker=ImpatientWorker) as trial:
        await trial.run([Fault(Point("modelstore", "store.write", "before"), "self", how)])
        assert trial.fleet.failed_uploads > 0


async def test_a_rolling_upgrade_to_a_newer_layout_changes_nothing() -> None:
    """In the middle of a round, and at the moment in which its owner has committed."""
    async with Trial() as trial:
        for step, when in (("jobs.receive", "before"), ("jobs.commit", "after")):
            await trial.run([Fault(Point("combiner", step, when), "self", How.UPGRADE)])
    assert (trial.count.sessions, trial.count.lost, trial.count.doubled) == (3, 0, 0)


@pytest.mark.parametrize("step", ["jobs.receive", "jobs.commit"])
async def test_a_failover_to_a_replica_that_lags_loses_nothing(step: str) -> None:
    async with Trial(stack=ReplicatedStack()) as trial:
        await trial.run([Fault(Point("combiner", step, "before"), "redis", How.FAILOVER)])
    assert (trial.count.sessions, trial.count.lost, trial.count.doubled) == (2, 0, 0)
