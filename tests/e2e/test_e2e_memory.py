"""`combiner serve` with less memory than a model needs: refused, and nobody dies of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from fedcombiner.client import OperatorClient
from fedcombiner.client.made_up import to_npz
from fedcombiner.modelstorage.formats.arrays import save_arrays
from fedcombiner.servicekit.errors import FailedPrecondition
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.e2e.test_serve import CLIENTS, fleet_at, serving

LIMIT = 420 << 20
ELEMENTS = 25_000_000


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group with a limit of memory."""
    one = Path("/sys/fs/cgroup/memory")
    base = one if one.is_dir() else Path("/sys/fs/cgroup")
    made = base / f"combiner-test-{os.getpid()}"
    try:
        made.mkdir()
        (made / ("memory.limit_in_bytes" if base == one else "memory.max")).write_text(str(LIMIT))
    except OSError as error:
        with suppress(OSError):
            made.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    yield made
    made.rmdir()


def within(group: Path) -> tuple[str, ...]:
    """The command, in that group from its beginning."""
    enter = f"open('{group}/cgroup.procs', 'w').write(str(os.getpid()))"
    return (sys.executable, "-c", f"import os; {enter}; from fedcombiner.cli.main import main; main()")


async def test_a_model_that_cannot_fit_is_refused_and_others_go_on(tmp_path: Path, group: Path) -> None:
    large = tmp_path / "large.npz"
    save_arrays(large, {"w": np.zeros(ELEMENTS, np.float32)}, compress=True)
    async with serving(tmp_path / "data", command=within(group)) as (process, address):
        async with OperatorClient(address) as operator:
            model = await operator.put_model(large)
            job = {"task": "training", "model_id": model.model_id, "round_id": "1"}
            for start in (
                operator.start_job(job),
                operator.start_session({"rounds": 1}, model_id=model.model_id),
            ):
                with pytest.raises(
                    FailedPrecondition, match=r"takes 417 MB of memory .* has \d+ MB for it"
                ) as caught:
                    await start
                assert "its limit of 440 MB" in caught.value.message
            seed = await operator.put_model(to_npz({"w": np.zeros(CLIENTS, np.float32)}))
            async with fleet_at(address):
                config = {"rounds": 1, "clients_required": CLIENTS, "validate": False}
                session = await operator.start_session(config, model_id=seed.model_id)
                ended = await operator.wait_session(session.session_id)
        assert ended.state == pb.SUCCEEDED
        assert process.returncode is None
