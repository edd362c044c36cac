"""House-keeping through a real server: what goes, what stays, and who sees to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from fedcombiner.modelstorage.store import Leftover, ObjectKey
from fedcombiner.servicekit.errors import InvalidArgument, NotFound
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2, upkeep_pb2
from tests.contract.state_kit import Server
from tests.rpc.combiner_kit import (
    DEADLINE,
    Connected,
    Gate,
    Replica,
    Stack,
    eventually,
    put_seed,
    training,
    until_job,
)
from tests.rpc.upkeep_kit import age, grow_old, objects, put_made_model, put_object


def named(removals: list[upkeep_pb2.Removal]) -> set[tuple[str, str]]:
    return {(removal.kind, removal.id) for removal in removals}


async def test_objects_that_no_record_names_go_when_they_are_old(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    age(combiner, ObjectKey("models", seed), 99)
    await put_object(combiner, "models", "orphan", days_old=1.1)
    await put_object(combiner, "models", "young", days_old=0.9)
    await put_object(combiner, "uploads", "unwanted", days_old=7.1)
    await put_object(combiner, "uploads", "waiting", days_old=6.9)
    (combiner.store._root / "models" / ".left-by-somebody").touch()
    expected = {("model", "orphan"), ("upload", "unwanted")}
    assert named(await combiner.operator.collect_garbage(dry_run=True)) == expected
    assert await objects(combiner, "models") == {seed, "orphan", "young"}
    gone = await combiner.operator.collect_garbage(dry_run=False)
    assert named(gone) == expected
    assert all(removal.size > 100 and removal.why for removal in gone)
    assert await objects(combiner, "models") == {seed, "young"}
    assert await objects(combiner, "uploads") == {"waiting", seed}
    assert await combiner.operator.collect_garbage(dry_run=False) == []


async def test_models_of_a_state_that_was_lost_are_not_taken_for_garbage(
    server: Server, tmp_path: Path
) -> None:
    stack = Stack(server.url, "fc:", tmp_path)
    combiner = await stack.combiner()
    seed = await put_seed(combiner)
    age(combiner, ObjectKey("models", seed), 30)
    connection = combiner.state._connection
    await connection.command("FLUSHALL")
    assert await combiner.operator.collect_garbage(dry_run=False) == []
    assert await objects(combiner, "models") == {seed}
    session = await combiner.operator.start_session(model_id=seed)  # it can be used again by its id
    assert session.seed_model_id == seed
    await stack.close()


@pytest.mark.parametrize("wanted", [False, True])
async def test_updates_stay_until_their_job_has_ended(combiner: Replica, wanted: bool) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 2) as here:
        config = training(seed, clients_required=2, delete_models_storage=not wanted)
        job_id = await combiner.operator.start_job(config)
        tasks = await here.tasks()
        update_id = await here.clients[0].train(tasks[0], 0)
        age(combiner, ObjectKey("uploads", update_id), 99)
        await until_job(combiner.operator, job_id, lambda job: list(job.accepted) == ["c0"], "c0")
        assert await combiner.operator.collect_garbage(dry_run=False) == []
        await combiner.operator.cancel_job(job_id)
    gone = await combiner.operator.collect_garbage(dry_run=False)
    assert named(gone) == (set() if wanted else {("upload", update_id)})


async def test_data_of_killed_writers_of_models_goes_when_it_is_a_week_old(
    combiner: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, timedelta, bool]] = []

    async def sweep(kind: str, older_than: timedelta, *, dry_run: bool) -> AsyncIterator[Leftover]:
        asked.append((kind, older_than, dry_run))
        yield Leftover("models/data/m1/token", 4)

    monkeypatch.setattr(combiner.store, "sweep", sweep)
    shown = await combiner.operator.collect_garbage(dry_run=True)
    assert named(shown) == {("leftover", "models/data/m1/token")}
    assert await combiner.operator.collect_garbage(dry_run=False) == shown
    assert asked == [("models", timedelta(days=7), True), ("models", timedelta(days=7), False)]


async def test_a_round_is_not_disturbed_by_house_keeping(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 2) as here:
        job_id = await combiner.operator.start_job(training(seed, clients_required=2))
        for client, task in zip(here.clients, await here.tasks(), strict=True):
            await combiner.operator.collect_garbage(dry_run=False)
            await client.train(task, int(client.name[1:]))
        job = await combiner.operator.wait_job(job_id)
    await combiner.operator.collect_garbage(dry_run=False)
    assert job.state == combiner_pb2.SUCCEEDED
    assert job.model_id in await objects(combiner, "models")


async def test_models_are_pruned_with_their_objects(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    for number, accuracy in enumerate((0.5, 0.9, 0.7, 0.8)):
        await put_made_model(combiner, f"m{number}", accuracy=accuracy)
    prune = combiner.operator.prune_models
    shown = await prune(1, keep_best="accuracy", dry_run=True)
    assert named(shown) == {("model", "m0"), ("model", "m2")}
    assert len(await combiner.operator.list_models()) == 5
    assert named(await prune(1, keep_best="accuracy", dry_run=False, only=["m2"])) == {("model", "m2")}
    assert await prune(1, dry_run=False, session_id="s1", keep_best="accuracy") == shown[:1]
    assert await objects(combiner, "models") == {seed, "m1", "m3"}
    assert {model.model_id for model in await combiner.operator.list_models()} == {seed, "m1", "m3"}


async def test_a_model_in_use_is_not_pruned(combiner: Replica) -> None:
    for number in range(3):
        await put_made_model(combiner, f"m{number}")
    session = await combiner.operator.start_session({"wait_for_clients": 60}, model_id="m0")
    assert named(await combiner.operator.prune_models(1, dry_run=False)) == {("model", "m1")}
    await combiner.operator.cancel_session(session.session_id)
    assert named(await combiner.operator.prune_models(1, dry_run=False)) == {("model", "m0")}


async def test_a_crash_while_pruning_leaves_no_record_without_its_object(combiner: Replica) -> None:
    for number in range(2):
        await put_made_model(combiner, f"m{number}")
    assert await combiner.state.models.forget(["m0"]) == ["m0"]  # and here the process was killed
    assert {model.model_id for model in await combiner.operator.list_models()} == {"m1"}
    await grow_old(combiner)
    age(combiner, ObjectKey("models", "m0"), 2)
    assert named(await combiner.operator.collect_garbage(dry_run=False)) == {("model", "m0")}


async def test_work_on_a_model_that_is_pruned_at_the_same_time_is_refused(stack: Stack) -> None:
    gate = Gate(at="sessions.start")
    one, two = await stack.combiner(gate=gate), await stack.combiner()
    await put_made_model(two, "m0")
    await put_made_model(two, "m1")
    starting = asyncio.create_task(one.operator.start_session(model_id="m0", session_id="unlucky"))
    await gate.until_reached()
    assert named(await two.operator.prune_models(1, dry_run=False)) == {("model", "m0")}
    gate.open()
    with pytest.raises(NotFound, match="m0 was removed"):
        await starting
    assert (await two.operator.get_session("unlucky")).state == combiner_pb2.CANCELLED


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        ({"keep": 0}, "keep"),
        ({"keep": 1, "keep_best": "acuracy"}, "acuracy.*accuracy"),
        ({"keep": 1, "only": ["../x"]}, "only"),
        ({"keep": 1, "session_id": "nothing"}, "session 'nothing'"),
    ],
)
async def test_what_cannot_be_pruned_is_refused(
    combiner: Replica, request_: dict[str, object], complaint: str
) -> None:
    await put_made_model(combiner, "m0", accuracy=0.5)
    with pytest.raises((InvalidArgument, NotFound), match=complaint):
        await combiner.operator.prune_models(**request_, dry_run=False)  # type: ignore[arg-type]
    assert await objects(combiner, "models") == {"m0"}


async def test_the_stack_keeps_house_by_itself(stack: Stack) -> None:
    one = await stack.combiner(housekeeping_seconds=0.05)
    await stack.combiner(housekeeping_seconds=0.05)
    await put_object(one, "models", "orphan", days_old=2)

    async def clean() -> bool:
        return not await objects(one, "models")

    await eventually(clean, "the orphan to be gone")


async def test_the_status_of_a_stack_at_work(stack: Stack) -> None:
    one, two = await stack.combiner(), await stack.combiner()
    seed = await put_seed(one)
    async with Connected(one, 2) as here:
        session = await one.operator.start_session({"rounds": 3, "clients_required": 2}, model_id=seed)
        second = await one.operator.start_session(model_id=seed)
        tasks = await here.tasks()
        await here.clients[0].train(tasks[0], 0)
        [job] = await one.operator.list_jobs()
        await until_job(one.operator, job.job_id, lambda job: list(job.accepted) == ["c0"], "c0")

        async def both() -> bool:
            return len((await two.operator.stack_status()).replicas) == 2

        await eventually(both, "both replicas")
        status = await two.operator.stack_status()
        await one.operator.cancel_session(second.session_id)
        await one.operator.cancel_session(session.session_id)
    assert (status.clients, status.trainers, status.validators) == (2, 2, 0)
    assert {backend.name: backend.up for backend in status.backends} == {"redis": True, "store": True}
    assert (status.readiness, status.queued_sessions, status.queued_jobs) == ("ready", 1, 0)
    [running] = status.running_sessions
    assert (running.session_id, running.rounds, running.rounds_done) == (session.session_id, 3, 0)
    [brief] = status.running_jobs
    assert (brief.job_id, brief.phase, brief.asked, brief.accepted) == (job.job_id, "collecting", 2, 1)
    assert status.newest_model.model_id == seed
    assert status.replica in status.replicas


async def test_the_status_without_redis_says_so(server: Server, tmp_path: Path) -> None:
    stack = Stack(server.url, "fc:", tmp_path)
    combiner = await stack.combiner()
    server.kill()
    status = await asyncio.wait_for(combiner.operator.stack_status(), DEADLINE)
    backends = {backend.name: backend for backend in status.backends}
    assert (backends["redis"].up, backends["store"].up, status.now) == (False, True, 0)
    assert backends["redis"].error
    server.start()
    await stack.close()


async def test_removals_are_safe_to_be_asked_for_twice(combiner: Replica) -> None:
    """Two collectors at once, each told of what it removed itself or of nothing."""
    for number in range(5):
        await put_object(combiner, "models", f"o{number}", days_old=2)
    found = await asyncio.gather(*(combiner.operator.collect_garbage(dry_run=False) for _ in range(3)))
    assert set().union(*map(named, found)) == {("model", f"o{number}") for number in range(5)}
    assert await objects(combiner, "models") == set()


async def test_the_blob_of_a_model_stays_while_the_model_is_in_use(combiner: Replica) -> None:
    """Also one that is older than the state: it can be made again."""
    seed = await put_seed(combiner)
    for model_id in (seed, "gone"):
        age(combiner, await put_object(combiner, "models", f"{model_id}.float32"), 30)
    assert named(await combiner.operator.collect_garbage(dry_run=False)) == {("model", "gone.float32")}
    assert await objects(combiner, "models") == {seed, f"{seed}.float32"}


async def test_the_blob_of_a_model_stays_for_a_client_that_is_asked_again_after_days(
    combiner: Replica,
) -> None:
    """The task of a running job is delivered again, whatever is the newest model by then."""
    seed = await put_seed(combiner)
    android = combiner.client("android")
    stream = android.open()
    job_id = await combiner.operator.start_job(training(seed))
    await stream.next()
    await stream.cancel()
    await put_seed(combiner)
    age(combiner, await put_object(combiner, "models", f"{seed}.float32"), 30)
    assert await combiner.operator.collect_garbage(dry_run=False) == []
    assert (await android.open().next()).model_id == seed
    await combiner.operator.cancel_job(job_id)
    assert named(await combiner.operator.collect_garbage(dry_run=False)) == {("model", f"{seed}.float32")}


async def test_the_blob_of_a_model_is_pruned_with_it(combiner: Replica) -> None:
    for model_id in ("m1", "m2"):
        await put_made_model(combiner, model_id)
        await put_object(combiner, "models", f"{model_id}.float32")
    await combiner.operator.prune_models(1, dry_run=False)
    assert await objects(combiner, "models") == {"m2", "m2.float32"}


async def test_no_model_has_the_name_of_a_blob(combiner: Replica) -> None:
    await put_object(combiner, "models", "m.float32")
    with pytest.raises(InvalidArgument, match=r"an id that does not end in \.float32"):
        await combiner.operator.start_session(model_id="m.float32")
