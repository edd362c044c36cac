"""House-keeping that is interrupted, and that is another replica's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from combiner.ports import StateUnavailable
from combiner.upkeep.housekeeper import Housekeeper
from combiner.upkeep.removal import Kind, Removal

from fedcombiner.modelstorage.store import StoreUnavailable

DEADLINE = 20.0


class Turns:
    """Answers `begin` from a list, then with 0 for ever."""

    def __init__(self, *waits: int | Exception) -> None:
        self.waits = list(waits)
        self.done_by: list[str] = []

    async def begin(self, replica: str, *, hold_ms: int, every_ms: int) -> int:
        wait = self.waits.pop(0) if self.waits else 0
        if isinstance(wait, Exception):
            raise wait
        return wait

    async def done(self, replica: str, *, every_ms: int) -> None:
        self.done_by.append(replica)


class Rubbish:
    """What `collect` finds: each entry is one time."""

    def __init__(self, *times: list[Removal] | Exception) -> None:
        self.times = list(times)
        self.all_done = asyncio.Event()

    async def collect(self, *, dry_run: bool) -> AsyncIterator[Removal]:
        assert not dry_run
        if not self.times:
            self.all_done.set()
            return
        time = self.times.pop(0)
        if isinstance(time, Exception):
            raise time
        for removal in time:
            yield removal


async def keep_house(turns: Any, rubbish: Any) -> list[str]:
    """Until all was collected. Returns the kinds of what was removed."""
    removed: list[str] = []
    task = asyncio.create_task(Housekeeper("r1", turns, rubbish, 0.001, removed.append).run())
    await asyncio.wait_for(rubbish.all_done.wait(), DEADLINE)
    task.cancel()
    await asyncio.wait([task])
    return removed


async def test_what_is_removed_is_counted() -> None:
    turns, rubbish = Turns(), Rubbish([Removal(Kind.MODEL, "m", ""), Removal(Kind.JOB, "j", "")], [])
    assert await keep_house(turns, rubbish) == ["model", "job"]
    assert turns.done_by[:2] == ["r1", "r1"]


async def test_it_waits_for_its_turn() -> None:
    turns, rubbish = Turns(1, 2), Rubbish()
    await keep_house(turns, rubbish)
    assert not turns.waits


@pytest.mark.parametrize("error", [StateUnavailable("away"), StoreUnavailable("away")])
async def test_an_outage_only_interrupts_it(error: Exception) -> None:
    turns, rubbish = Turns(StateUnavailable("away")), Rubbish(error, [Removal(Kind.UPLOAD, "u", "")])
    assert await keep_house(turns, rubbish) == ["upload"]
