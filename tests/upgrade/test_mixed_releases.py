"""Replicas of the release before and of this one on one Redis: nothing is lost, or the old ones say why."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.faults.conductor import Point
from tests.faults.faults import REFUSED, Fault, How
from tests.faults.processes import Program
from tests.faults.stack import COMBINERS, ROOT, Stack, path_to
from tests.faults.trial import Trial

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

BEFORE: Final = "eb06b9b"
STEPS: Final = (Point("combiner", "jobs.accept", "before"), Point("combiner", "jobs.commit", "before"))


@pytest.fixture
def tree_before(tmp_path: Path) -> Path:
    """The tree of the release before."""
    archive = tmp_path / "before.tar"
    wanted = ["git", "-C", str(ROOT), "archive", "--output", str(archive), BEFORE]
    if subprocess.run(wanted, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"the history of this checkout does not go back to {BEFORE}: fetch all of it")
    tree = tmp_path / "before"
    tree.mkdir()
    subprocess.run(["tar", "-xf", str(archive), "-C", str(tree)], check=True)
    return tree


async def _start_as_this_release(program: Program) -> None:
    program.place = ROOT
    program.env |= path_to(ROOT)
    await program.start()
    await program.ready()


async def _upgrade(program: Program) -> None:
    program.signal(signal.SIGTERM)
    assert await program.ended() == 0
    await _start_as_this_release(program)


async def test_old_and_new_replicas_lose_nothing_together(tree_before: Path) -> None:
    async with Trial(stack=Stack(source=tree_before)) as trial:
        new, old = (trial.stack.programs[name] for name in COMBINERS)
        await _upgrade(new)
        await trial.run(())
        if old.alive:
            # Work goes from each to the other; the aggregate must be the same, byte for byte.
            for step in STEPS:
                for victim in COMBINERS:
                    await trial.run([Fault(step, victim, How.KILL)])
            await _upgrade(old)
        else:
            assert await old.ended() == REFUSED
            assert "Redis holds the state of a newer version" in old.log.read_text("utf-8")
            await _start_as_this_release(old)
        await trial.run([Fault(STEPS[0], "self", How.KILL)])
    assert (trial.count.lost, trial.count.doubled) == (0, 0)
