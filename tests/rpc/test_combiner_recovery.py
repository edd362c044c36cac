"""Our side broke: nobody pays for it who is not to blame, and what is lost is not guessed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import redis
from combiner import modelstores
from combiner.aggregation.exact import ExactSum
from combiner.ports import Conflict

from fedcombiner.modelstorage.store import ObjectKey
from fedcombiner.servicekit.health import Health
from fedcombiner.servicekit.http import HttpServer, operations_app
from fedcombiner.servicekit.lifecycle import Stopped
from fedcombiner.servicekit.metrics import Metrics
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.contract.state_kit import Server
from tests.rpc.combiner_kit import (
    DEADLINE,
    SHORT,
    Connected,
    Gate,
    Replica,
    Stack,
    eventually,
    one_hot,
    put_seed,
    reasons,
    shares,
    training,
    until_job,
    weights_of,
)


async def test_a_client_that_failed_while_the_store_was_away_is_asked_again(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 2) as fleet:
        job_id = await combiner.operator.start_job(training(seed, clients_required=2))
        tasks = await fleet.tasks()
        combiner.app._trouble.note()
        await fleet.clients[0].fail(tasks[0])
        again = await fleet.streams[0].next()
        assert again.id != tasks[0].id
        await fleet.clients[0].train(again, 0)
        await fleet.clients[1].train(tasks[1], 1)
        job = await combiner.operator.wait_job(job_id)
    assert (job.state, list(job.failed), list(job.rejected)) == (pb.SUCCEEDED, [], [])
    assert await weights_of(combiner, job) == shares(1, 1)


async def test_a_client_that_was_asked_again_and_then_dies_is_lost(stack: Stack) -> None:
    combiner = await stack.combiner(windows=SHORT)
    seed = await put_seed(combiner)
    async with Connected(combiner, 2, beat=True) as fleet:
        job_id = await combiner.operator.start_job(training(seed, client_grace=0.2))
        tasks = await fleet.tasks()
        combiner.app._trouble.note()
        await fleet.clients[0].fail(tasks[0])
        await fleet.streams[0].next()
        await fleet.streams[0].cancel()
        await fleet.clients[1].train(tasks[1], 1)
        job = await combiner.operator.wait_job(job_id)
    assert (job.state, reasons(job.failed)) == (pb.SUCCEEDED, {"c0": "client_lost"})
    assert job.ended_at < job.deadline_at


async def test_one_look_for_trouble_serves_all_that_have_failed_by_then(stack: Stack) -> None:
    combiner = await stack.combiner()
    seed = await put_seed(combiner)
    looks = 0
    may_end = asyncio.Event()

    async def slow_look() -> None:
        nonlocal looks
        task = asyncio.current_task()
        if task is not None and task.get_name().startswith("job:"):
            looks += 1
            await may_end.wait()

    combiner.app._trouble.look = slow_look  # type: ignore[method-assign]
    async with Connected(combiner, 8) as fleet:
        job_id = await combiner.operator.start_job(training(seed, clients_required=8))
        for client, task in zip(fleet.clients, await fleet.tasks(), strict=True):
            await client.fail(task)
        await until_job(combiner.operator, job_id, lambda job: len(job.failed) == 8, "all have failed")
        may_end.set()
        job = await combiner.operator.wait_job(job_id)
    assert (job.state, len(job.failed)) == (pb.FAILED, 8)
    assert looks <= 2


async def test_an_aggregate_that_the_journal_refuses_is_made_anew_once(stack: Stack) -> None:
    gate = Gate("jobs.commit")
    combiner = await stack.combiner(gate=gate)
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        job_id = await combiner.operator.start_job(training(seed))
        await fleet.clients[0].train((await fleet.tasks())[0], 0)
        await gate.until_reached()
        written = [info.key.id async for info in combiner.store.list("models") if info.key.id != seed]
        assert await combiner.state.models.condemn(written) == written
        gate.open()
        job = await combiner.operator.wait_job(job_id)
    assert job.state == pb.SUCCEEDED, job
    assert job.model_id not in written
    assert await weights_of(combiner, job) == shares(1)
    assert [info.key.id async for info in combiner.store.list("models")] == sorted([seed, job.model_id])


async def test_an_aggregate_that_the_journal_refuses_again_fails_the_job_with_the_reason(
    combiner: Replica,
) -> None:
    async def refuse(*_: object) -> None:
        raise Conflict("not closed")

    seed = await put_seed(combiner)
    combiner.state.jobs.commit = refuse  # type: ignore[method-assign]
    async with Connected(combiner, 1) as fleet:
        job_id = await combiner.operator.start_job(training(seed))
        await fleet.clients[0].train((await fleet.tasks())[0], 0)
        job = await combiner.operator.wait_job(job_id)
    assert job.state == pb.FAILED
    assert job.reason.startswith("the journal refused the aggregate ")
    assert job.reason.endswith(": not closed")
    assert [info.key.id async for info in combiner.store.list("models")] == [seed]


async def test_a_journal_that_a_failover_took_back_is_read_again(combiner: Replica) -> None:
    """A failover took back what the owner knew of an update: it goes on from the journal as it is now."""
    accept, refused = combiner.state.jobs.accept, False

    async def refuse_once(*step: Any, **more: Any) -> None:
        nonlocal refused
        if not refused:
            refused = True
            raise Conflict("the client is asked")
        await accept(*step, **more)

    seed = await put_seed(combiner)
    combiner.state.jobs.accept = refuse_once  # type: ignore[method-assign]
    async with Connected(combiner, 2) as fleet:
        job_id = await combiner.operator.start_job(training(seed))
        for index, task in enumerate(await fleet.tasks()):
            await fleet.clients[index].train(task, index)
        job = await combiner.operator.wait_job(job_id)
    assert refused
    assert (job.state, list(job.accepted)) == (pb.SUCCEEDED, ["c0", "c1"]), job
    assert await weights_of(combiner, job) == {0: 0.5, 1: 0.5}


async def test_a_job_that_kills_every_owner_ends_and_says_so(stack: Stack) -> None:
    """Each one dies as soon as it has accepted the update, in the fold."""
    gate = Gate("jobs.accept", after=True)
    combiner = await stack.combiner(windows=SHORT, gate=gate)
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        config = training(seed, clients_requested=1, client_grace=60)
        job_id = await combiner.operator.start_job(config)
        await fleet.clients[0].train((await fleet.tasks())[0], 0)
        await gate.until_reached()
        await combiner.kill()
    # What was accepted is read for the fold at once: no step of the journal tells of it.
    for _ in range(5):
        gate = Gate("jobs.get", after=True)
        combiner = await stack.combiner(windows=SHORT, gate=gate)
        await gate.until_reached()
        await combiner.kill()
    combiner = await stack.combiner(windows=SHORT)
    job = await combiner.operator.wait_job(job_id)
    assert job.state == pb.FAILED
    assert job.reason.startswith("its owner died 6 times in a row while ")
    assert list(job.accepted) == ["c0"]


async def test_a_rejected_duplicate_deletes_nothing_of_another_job(stack: Stack) -> None:
    combiner = await stack.combiner(limits={"max_running_jobs": 2})
    seed = await put_seed(combiner)
    async with Connected(combiner, 3) as fleet:
        first = await combiner.operator.start_job(training(seed, clients_required=3))
        tasks = await fleet.tasks()
        update_id = await fleet.clients[0].train(tasks[0], 0)
        second = await combiner.operator.start_job(training(seed, clients_required=2))
        others = await fleet.tasks()
        await fleet.clients[0].train(others[0], 0)
        await fleet.clients[1].train(others[1], 1)
        await fleet.clients[2].send(fleet.clients[2].update(others[2], update_id))
        job = await combiner.operator.wait_job(second)
        assert (job.state, reasons(job.rejected)) == (pb.SUCCEEDED, {"c2": "duplicate"})

        async def cleaned() -> bool:
            return len([info async for info in combiner.store.list("uploads")]) <= 2

        await eventually(cleaned, "the second job's uploads to go")
        assert await combiner.store.head(ObjectKey("uploads", update_id)) is not None
        await combiner.operator.cancel_job(first)


async def test_the_next_owner_asks_those_who_failed_while_nobody_owned_the_job(stack: Stack) -> None:
    """The failure is recorded and its owner dies before it could act on it."""
    gate, others = Gate("jobs.ask_again"), Gate()
    owner = await stack.combiner(windows=SHORT, gate=gate)
    seed = await put_seed(owner)
    job_id = await owner.operator.start_job(training(seed, clients_required=1, client_grace=60))
    await until_job(owner.operator, job_id, lambda job: job.phase == "waiting", "is the first one's")
    survivor = await stack.combiner(windows=SHORT, gate=others)
    async with Connected(survivor, 1, beat=True) as fleet:
        (task,) = await fleet.tasks()
        owner.app._trouble.note()
        await fleet.clients[0].fail(task)
        await gate.until_reached()
        await owner.kill()
        await fleet.clients[0].train(await fleet.streams[0].next(), 0)
        job = await survivor.operator.wait_job(job_id)
    assert (job.state, list(job.failed)) == (pb.SUCCEEDED, [])


@asynccontextmanager
async def a_modelstore(port: int = 0) -> AsyncIterator[int]:
    """Its readiness, which is all that a combiner looks at; the port."""
    metrics = Metrics()
    health = Health(metrics)
    health.readiness.mark_ready()
    page = operations_app(service="modelstore", version="", metrics=metrics, health=health)
    server = HttpServer(page, "127.0.0.1", port)
    await server.start()
    try:
        yield server.port
    finally:
        await server.stop()


async def test_a_client_that_failed_because_a_modelstore_is_gone_is_asked_again(stack: Stack) -> None:
    async with AsyncExitStack() as modelstore:
        port = await modelstore.enter_async_context(a_modelstore())
        combiner = await stack.combiner(modelstores=f"127.0.0.1:{port}")
        seed = await put_seed(combiner)
        async with Connected(combiner, 1) as fleet:
            job_id = await combiner.operator.start_job(training(seed))
            (task,) = await fleet.tasks()
            await modelstore.aclose()
            await fleet.clients[0].fail(task)
            again = await fleet.streams[0].next()
            assert again.id != task.id
            await fleet.clients[0].train(again, 0)
            job = await combiner.operator.wait_job(job_id)
    assert (job.state, list(job.failed)) == (pb.SUCCEEDED, [])


async def test_a_client_that_failed_while_a_modelstore_was_away_is_asked_again(stack: Stack) -> None:
    """It is back when the client says so."""
    async with a_modelstore() as port:
        combiner = await stack.combiner(modelstores=f"127.0.0.1:{port}")
        seed = await put_seed(combiner)
        fleet = await Connected(combiner, 1).__aenter__()
        job_id = await combiner.operator.start_job(training(seed))
        (task,) = await fleet.tasks()
    opened = asyncio.get_running_loop().time()

    async def noticed() -> bool:
        return combiner.app._trouble.seconds_ago < asyncio.get_running_loop().time() - opened

    await eventually(noticed, "the combiner to miss the modelstore")
    async with a_modelstore(port):
        await fleet.clients[0].fail(task)
        await fleet.clients[0].train(await fleet.streams[0].next(), 0)
        job = await combiner.operator.wait_job(job_id)
        await fleet.__aexit__(None, None, None)
    assert (job.state, list(job.failed)) == (pb.SUCCEEDED, [])


async def test_a_client_that_fails_while_the_modelstores_are_there_is_to_blame(stack: Stack) -> None:
    async with a_modelstore() as one, a_modelstore() as two:
        combiner = await stack.combiner(modelstores=f"127.0.0.1:{one},127.0.0.1:{two}")
        seed = await put_seed(combiner)
        async with Connected(combiner, 1) as fleet:
            job_id = await combiner.operator.start_job(training(seed))
            (task,) = await fleet.tasks()
            await fleet.clients[0].fail(task)
            job = await combiner.operator.wait_job(job_id)
    assert (job.state, reasons(job.failed)) == (pb.FAILED, {"c0": "client_failed"})


async def test_a_modelstore_that_has_moved_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a headless service, whose name stands for those that are ready."""
    async with a_modelstore() as one, a_modelstore() as two:
        places = [[("127.0.0.1", one)], [("127.0.0.1", two)], [("127.0.0.1", two)], []]

        async def listed(_place: object) -> list[tuple[str, int]]:
            return places.pop(0)

        monkeypatch.setattr(modelstores, "_addresses", listed)
        watch = modelstores.Modelstores(["modelstores:9464"])
        try:
            assert [await watch.away() for _ in range(4)] == [False, True, False, True]
        finally:
            await watch.aclose()


async def test_a_name_that_nobody_has_is_away() -> None:
    watch = modelstores.Modelstores(["nobody.invalid:9464"])
    assert await watch.away()
    await watch.aclose()


async def test_a_client_that_fails_while_all_is_well_is_not_asked_again(combiner: Replica) -> None:
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        job_id = await combiner.operator.start_job(training(seed))
        (task,) = await fleet.tasks()
        await fleet.clients[0].fail(task)
        job = await combiner.operator.wait_job(job_id)
    assert (job.state, reasons(job.failed)) == (pb.FAILED, {"c0": "client_failed"})


@pytest.mark.parametrize("method", ["add", "mean_into"])
async def test_a_broken_scratch_disk_makes_the_round_fold_anew(
    combiner: Replica, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Once while the second update is added, or while the aggregate is written; then the disk is well."""
    works = getattr(ExactSum, method)
    calls = 0

    def fails_once(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 or (method == "mean_into" and calls == 1):
            raise OSError(28, "No space left on device")
        return works(*args)

    monkeypatch.setattr(ExactSum, method, fails_once)
    seed = await put_seed(combiner)
    async with Connected(combiner, 3) as fleet:
        job_id = await combiner.operator.start_job(training(seed, clients_required=3))
        for index, task in enumerate(await fleet.tasks()):
            await fleet.clients[index].train(task, index, index + 1)
        job = await combiner.operator.wait_job(job_id)
    assert (job.state, list(job.rejected)) == (pb.SUCCEEDED, []), job.reason
    assert await weights_of(combiner, job) == shares(1, 2, 3)
    assert calls > 2


async def test_when_redis_is_lost_models_are_listed_and_nothing_is_guessed(
    server: Server, frail: Stack
) -> None:
    """It comes back without its data, in the middle of a round."""
    combiner = await frail.combiner()
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        job_id = await combiner.operator.start_job(training(seed))
        (task,) = await fleet.tasks()
        message = fleet.clients[0].update(task, await fleet.clients[0].upload(one_hot(0)))
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
        server.kill()
        server.start()
        await fleet.clients[0].send(message)

        async def listed() -> bool:
            return [model.model_id for model in await combiner.operator.list_models()] == [seed]

        await eventually(listed, "the model in the store to be listed")
        assert await combiner.operator.list_jobs() == []
        assert (await combiner.operator.report())["nr_unprocessed_compute_plans"] == "0"
        with pytest.raises(Exception, match="there is no model"):
            await combiner.operator.describe_model("")
        assert "lost with Redis" in (await combiner.operator.describe_model(seed)).name
        # And everything works again: the client's stream is still open.
        assert not fleet.streams[0].call.done()
        again = await combiner.operator.start_job(training(seed))
        assert again != job_id
        await fleet.clients[0].train(await fleet.streams[0].next(), 0)
        job = await combiner.operator.wait_job(again)
    assert job.state == pb.SUCCEEDED
    assert await weights_of(combiner, job) == shares(1)


async def test_a_replica_that_meets_a_newer_schema_stops_and_confirms_nothing(
    server: Server, frail: Stack
) -> None:
    """As in a rolling upgrade: the newer version has written first."""
    combiner = await frail.combiner()
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        job_id = await combiner.operator.start_job(training(seed))
        (task,) = await fleet.tasks()
        message = fleet.clients[0].update(task, await fleet.clients[0].upload(one_hot(0)))
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            client.set("fc:schema", 2)
            sending = asyncio.create_task(fleet.clients[0].send(message))
            await asyncio.wait_for(combiner.stopping.wait(), DEADLINE)
            assert combiner.stopping.failed
            assert "state of a newer version" in combiner.stopping.reason
            assert not sending.done()
            sending.cancel()
            assert '"asked"' in client.hget(f"fc:clients:{job_id}", "c0")
        combiner.expects_failure = True


async def test_a_replica_is_never_ready_on_state_of_a_newer_schema(server: Server, frail: Stack) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.set("fc:schema", 2)
    with pytest.raises(Stopped, match=r"layout 2; .* knows 1"):
        await frail.combiner()
