"""`combiner backup` and `restore` from one stack into another, and what is refused."""

from __future__ import annotations

import gzip
import json
import shutil
import stat
from hashlib import sha256
from pathlib import Path

import pytest
from combiner.catalog import FOUND

from fedcombiner.client.made_up import MadeUp, one_hot
from fedcombiner.client.simulate import SimulatedFleet
from fedcombiner.servicekit.errors import FailedPrecondition
from fedcombiner.wire.backup import Header
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from fedcombiner.wire.pb.combiner.v1 import upkeep_pb2, upkeep_pb2_grpc
from tests.contract.state_kit import Server
from tests.rpc import cli_kit
from tests.rpc.combiner_kit import WIDTH, Connected, Replica, Stack, eventually, put_seed, training, until_job


@pytest.fixture
async def second(redis_server: Server, tmp_path: Path, stack: Stack) -> Replica:
    """A combiner on another state, and on the same object store."""
    other = Stack(redis_server.url, f"{stack._prefix}second:", tmp_path)
    stack._replicas.append(combiner := await other.combiner())
    return combiner


def fleet(replica: Replica) -> SimulatedFleet:
    def make(index: int) -> MadeUp:
        return MadeUp(index, one_hot(WIDTH))

    return SimulatedFleet(2, replica.address, workload=make, heartbeat_interval=0.3)


async def a_past(combiner: Replica) -> None:
    """An ended session `s` of two rounds."""
    seed = await put_seed(combiner)
    async with fleet(combiner):
        await combiner.operator.start_session(
            {"rounds": 2, "clients_required": 2}, model_id=seed, session_id="s"
        )
        await combiner.operator.wait_session("s")


async def test_a_state_moves_to_another_stack(combiner: Replica, second: Replica, tmp_path: Path) -> None:
    await a_past(combiner)
    file = tmp_path / "state.gz"
    [saved] = await cli_kit.rows(combiner, "backup", str(file))
    assert (saved["sessions"], saved["jobs"], saved["models"]) == (1, 4, 3)
    assert saved["missing_models"] == []
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.glob(".*")] == []
    [restored] = await cli_kit.rows(second, "restore", str(file))
    counts = {"model": 3, "job": 4, "session": 1, "setting": 0}
    assert restored == {"restored": counts, "known": {}, "missing_models": [], "missing": 0}
    assert await second.operator.get_session("s") == await combiner.operator.get_session("s")
    assert await second.operator.list_jobs() == await combiner.operator.list_jobs()
    assert await second.operator.list_models() == await combiner.operator.list_models()
    assert await second.operator.describe_model() == await combiner.operator.describe_model()


async def test_models_that_were_only_found_are_no_state_to_lose(
    combiner: Replica, redis_server: Server, tmp_path: Path, stack: Stack
) -> None:
    await a_past(combiner)
    file = tmp_path / "state.gz"
    await combiner.operator.backup(file)
    unsaved = await put_seed(combiner)
    fresh = await Stack(redis_server.url, f"{stack._prefix}fresh:", tmp_path).combiner()
    stack._replicas.append(fresh)

    async def all_found() -> bool:
        return [model.name for model in await fresh.operator.list_models()] == [FOUND] * 4

    await eventually(all_found, "the models of the store are listed")
    [restored] = await cli_kit.rows(fresh, "restore", str(file))
    assert restored["restored"]["model"] == 3
    by_id = {model.model_id: model for model in await fresh.operator.list_models()}
    assert by_id.pop(unsaved).name == FOUND
    was = {model.model_id: model for model in await combiner.operator.list_models()}
    del was[unsaved]
    assert by_id == was
    again = await cli_kit.run(fresh, "restore", str(file))
    assert (again.exit_code, "1 jobs" in again.stderr) == (2, False)
    assert "8 jobs, sessions and models are there" in again.stderr


async def test_a_round_in_the_middle_goes_on_elsewhere(
    combiner: Replica, second: Replica, tmp_path: Path
) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 2) as here:
        job_id = await combiner.operator.start_job(training(seed, clients_required=2))
        tasks = await here.tasks()
        await here.clients[0].train(tasks[0], 0)
        await until_job(combiner.operator, job_id, lambda job: list(job.accepted) == ["c0"], "c0")
        await combiner.operator.backup(tmp_path / "state.gz")
    await second.operator.restore(tmp_path / "state.gz")
    async with Connected(second, 2) as there:
        task = await there.streams[1].next()
        await there.clients[1].train(task, 1)
        job = await second.operator.wait_job(job_id)
    assert (job.state, list(job.accepted)) == (pb.SUCCEEDED, ["c0", "c1"])


async def test_a_session_goes_on_elsewhere(combiner: Replica, second: Replica, tmp_path: Path) -> None:
    seed = await put_seed(combiner)
    config = {"rounds": 1, "clients_required": 2, "wait_for_clients": 60}
    await combiner.operator.start_session(config, model_id=seed, session_id="s")
    await combiner.operator.backup(tmp_path / "state.gz")
    await combiner.operator.cancel_session("s")
    await second.operator.restore(tmp_path / "state.gz")
    async with fleet(second):
        assert (await second.operator.wait_session("s")).state == pb.SUCCEEDED


async def test_what_is_there_is_replaced_only_when_told(combiner: Replica, tmp_path: Path) -> None:
    await a_past(combiner)
    file = str(tmp_path / "state.gz")
    await cli_kit.run(combiner, "backup", file)
    before = await combiner.operator.list_models()
    extra = await put_seed(combiner)
    refused = await cli_kit.run(combiner, "restore", file)
    assert refused.exit_code == 2
    assert "--replace" in refused.stderr
    unsure = await cli_kit.run(combiner, "restore", file, "--replace", typed="n\n")
    assert "1 sessions, 4 jobs, 3 models" in unsure.stderr
    assert extra in [model.model_id for model in await combiner.operator.list_models()]
    done = await cli_kit.run(combiner, "restore", file, "--replace", typed="y\n")
    assert done.exit_code == 0, done.stderr
    assert await combiner.operator.list_models() == before

    async def nothing_is_left_over() -> bool:
        # A session ends before the uploads of its last round are gone.
        return await combiner.operator.collect_garbage(dry_run=True) == []

    await eventually(nothing_is_left_over, "uploads that nothing needs are gone")


async def test_nothing_is_replaced_under_work(combiner: Replica, tmp_path: Path) -> None:
    await put_seed(combiner)
    file = str(tmp_path / "state.gz")
    await cli_kit.run(combiner, "backup", file)
    await combiner.operator.start_session({"wait_for_clients": 60}, session_id="s")
    result = await cli_kit.run(combiner, "restore", file, "--replace", "--yes")
    assert result.exit_code == 2
    assert "combiner session cancel" in result.stderr


async def test_models_that_are_not_in_the_store_are_named(
    combiner: Replica, second: Replica, tmp_path: Path
) -> None:
    seed = await put_seed(combiner)
    shutil.rmtree(combiner.store._root / "models" / seed)
    file = str(tmp_path / "state.gz")
    for replica, words in ((combiner, ("backup", file)), (second, ("restore", file))):
        result = await cli_kit.run(replica, *words)
        assert result.exit_code == 1
        assert f"1 of its models are not in the object store: {seed}" in result.stderr


async def test_no_file_is_overwritten_and_none_that_is_no_backup_is_sent(
    combiner: Replica, tmp_path: Path
) -> None:
    file = tmp_path / "state.gz"
    file.write_text("hello")
    taken = await cli_kit.run(combiner, "backup", str(file))
    assert (taken.exit_code, file.read_text()) == (2, "hello")
    assert "choose another name" in taken.stderr
    wrong = await cli_kit.run(combiner, "restore", str(file))
    assert wrong.exit_code == 2
    assert "cannot be restored" in wrong.stderr


async def test_a_backup_of_another_layout_is_refused_by_the_server(combiner: Replica, tmp_path: Path) -> None:
    file = tmp_path / "state.gz"
    await combiner.operator.backup(file)
    header, *rest = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
    newer = json.dumps(json.loads(header) | {"schema": 99, "software": "9.9"}, separators=(",", ":"))
    body = newer.encode() + b"\n" + b"".join(rest[:-1])
    end = json.loads(rest[-1]) | {"sha256": sha256(body).hexdigest()}
    file.write_bytes(gzip.compress(body + json.dumps(end, separators=(",", ":")).encode() + b"\n"))
    result = await cli_kit.run(combiner, "restore", str(file))
    assert result.exit_code == 2
    assert "layout 99" in result.stderr
    assert "9.9" in result.stderr


HEADER = Header(schema=1, created_at="", software="").encode()


@pytest.mark.parametrize(
    ("portions", "complaint"),
    [
        ([], "empty"),
        ([b"garbage\n"], "line 1 is not JSON"),
        ([b"{}\n"], "first line"),
        ([HEADER[:-2]], "middle of a line"),
        ([HEADER, b"garbage\n"], "line 2 is not JSON"),
        ([HEADER, b"[" * 100_000 + b"\n"], "line 2 is not JSON"),
        ([HEADER, b'{"kind":"job"}\n'], "line 2: not a job"),
        ([HEADER + b'{"kind":"settings"}\n'], "line 2: settings without values"),
        ([HEADER, b'{"kind":', b'"nothing"}\n'], "line 2: 'nothing' is no kind"),
    ],
)
async def test_a_stream_that_is_no_backup_is_refused(
    combiner: Replica, portions: list[bytes], complaint: str
) -> None:
    stub: upkeep_pb2_grpc.UpkeepAsyncStub = upkeep_pb2_grpc.UpkeepStub(combiner.operator.link)
    requests = (upkeep_pb2.RestoreRequest(data=portion) for portion in portions)
    with pytest.raises(FailedPrecondition, match=complaint):
        await combiner.operator._reach(lambda: stub.Restore(requests))
