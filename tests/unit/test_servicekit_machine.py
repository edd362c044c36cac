"""The memory that a process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedcombiner.servicekit.machine import memory_bytes

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
MIB = 1024 * 1024


@pytest.fixture
def own(tmp_path: Path) -> Path:
    own = tmp_path / "own"
    own.write_text("0::/system.slice/app.service\n")
    return own


def limit(root: Path, group: str, text: str, name: str = "memory.max") -> None:
    directory = root / group
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(text + "\n")


def test_without_a_limit_it_is_the_machines(tmp_path: Path, own: Path) -> None:
    assert memory_bytes(tmp_path / "nothing", tmp_path) == MACHINE
    limit(tmp_path, "system.slice/app.service", "max")
    assert memory_bytes(own, tmp_path) == MACHINE


def test_the_least_of_all_groups_counts(tmp_path: Path, own: Path) -> None:
    limit(tmp_path, "system.slice/app.service", str(512 * MIB))
    limit(tmp_path, "system.slice", str(256 * MIB))
    assert memory_bytes(own, tmp_path) == 256 * MIB
    limit(tmp_path, ".", str(64 * MIB))
    assert memory_bytes(own, tmp_path) == 64 * MIB


def test_the_first_version_of_control_groups(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("5:cpu:/x\n4:memory,hugetlb:/docker/abc\n0::/unified\n")
    limit(tmp_path / "memory", ".", str(128 * MIB), "memory.limit_in_bytes")
    assert memory_bytes(own, tmp_path) == 128 * MIB
