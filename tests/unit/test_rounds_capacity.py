"""Rounds that fit into the memory and scratch of a process, and the order in which they wait."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from combiner.rounds.capacity import Capacity, Room

from fedcombiner.modelstorage.formats import ModelSpec, TensorSpec

MB = 1_000_000
MODEL = ModelSpec((TensorSpec("w", np.dtype("f4"), (1000, 25_000)),))


def test_both_numbers_are_named(tmp_path: Path) -> None:
    assert Capacity(limit=600 * MB, idle=100 * MB, scratch=tmp_path).lacks_memory(MODEL) == ""
    lack = Capacity(limit=400 * MB, idle=100 * MB, scratch=tmp_path).lacks_memory(MODEL)
    assert lack == (
        "a round takes 417 MB of memory (16 bytes for each of 25000000 numbers), and a combiner has 300 MB "
        "for it: its limit of 400 MB less 100 MB that it takes without work; give the combiners more memory"
    )


@pytest.mark.parametrize(("free", "lacks"), [(100 * MB, False), (100 * MB - 1, True)])
def test_the_aggregate_needs_room_in_scratch(
    free: int, lacks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    lack = Capacity(limit=0, idle=0, scratch=tmp_path).lacks_scratch(MODEL)
    assert lack.startswith("a round takes at least 100 MB of scratch, and 100 MB are free in /") is lacks


def test_a_scratch_directory_that_cannot_be_looked_at_refuses_nothing(tmp_path: Path) -> None:
    assert Capacity(limit=0, idle=0, scratch=tmp_path / "nowhere").lacks_scratch(MODEL) == ""


@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_a_limit_of_the_process_counts(limit: str, tmp_path: Path) -> None:
    """Memory that is mapped without work is subtracted: far more than is resident."""
    script = f"""
import resource, pathlib
from combiner.rounds.capacity import Capacity
plain = Capacity.measured(pathlib.Path("."))
resource.setrlimit(resource.{limit}, (3 << 30, 3 << 30))
limited = Capacity.measured(pathlib.Path("."))
print(limited.limit == min(3 << 30, plain.limit), limited.memory <= (3 << 30) - limited.idle)
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert run.stdout.split() == ["True", "True"]


async def test_the_room_is_never_taken_twice() -> None:
    room = Room(10)
    taken: list[str] = []

    async def take(name: str, size: int) -> None:
        await room.take(size)
        taken.append(name)

    await take("a", 6)
    waiting = [asyncio.create_task(take(name, size)) for name, size in (("b", 5), ("c", 5))]
    await take("d", 4)
    assert taken == ["a", "d"]
    room.give_back(6)
    await asyncio.wait_for(waiting[0], 20)
    assert taken == ["a", "d", "b"]
    room.give_back(4)
    await asyncio.wait_for(waiting[1], 20)
    room.give_back(5)
    room.give_back(5)
    await take("larger than all", 11)
    assert not room.has(1)
