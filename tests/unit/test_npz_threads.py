"""Updates that are checked in several threads at once, as the fold does it."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fedcombiner.modelstorage.formats.arrays import save_arrays
from fedcombiner.modelstorage.formats.npz import check_update, read_spec

THREADS = 4
CHECKS = 300


class _Garbage:
    """Lets another thread run when it is collected, and leaves new garbage, while there is a `restless`."""

    goes_on = False

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        time.sleep(0)
        if self.goes_on:
            type(self)()


@pytest.fixture
def restless() -> Iterator[None]:
    """Garbage is collected, and threads change, in the middle of everything."""
    threshold = gc.get_threshold()
    _Garbage.goes_on = True
    for _ in range(THREADS):
        _Garbage()
    gc.set_threshold(5)
    yield
    gc.set_threshold(*threshold)
    _Garbage.goes_on = False


def test_headers_that_are_parsed_at_once_do_not_disturb_each_other(tmp_path: Path, restless: None) -> None:
    path = tmp_path / "update.npz"
    save_arrays(path, {f"layer{number}": np.zeros(3, "f4") for number in range(10)})
    spec = read_spec(path)

    def check(_: int) -> None:
        check_update(path, spec, scratch_dir=tmp_path).close()

    with ThreadPoolExecutor(THREADS) as threads:
        assert len(list(threads.map(check, range(CHECKS)))) == CHECKS
