"""Redis or the store is away: answers are held and recorded, clients notice nothing, rounds go on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import grpc.aio
import pytest
import redis
from combiner.ports import Event

from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.contract.state_kit import Server
from tests.rpc.combiner_kit import (
    DEADLINE,
    SHORT,
    VALIDATION_STREAM,
    Client,
    Connected,
    Replica,
    Stack,
    eventually,
    one_hot,
    put_seed,
    reasons,
    shares,
    training,
    until_job,
    until_streams,
    weights_of,
)


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """Redis takes connections and commands, and answers nothing."""
    with redis.Redis.from_url(server.url) as client:
        pid = int(client.info("server")["process_id"])
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def assert_clients_notice_nothing(client: Client) -> None:
    """Heartbeats and statuses are answered; FEDn's clients die of anything else."""
    assert (await client.beat()).response == "Heartbeat received"
    status = fedn_pb2.Status(sender=client.messages.heartbeat.sender, status="busy")
    reply = await client.link.connector.SendStatus(status, timeout=DEADLINE)
    assert reply.response == "Status received."


async def test_updates_are_held_while_redis_is_stopped_and_then_recorded(
    server: Server, frail: Stack
) -> None:
    combiner = await frail.combiner()
    seed = await put_seed(combiner)
    async with Connected(combiner, 3) as fleet:
        job_id = await combiner.operator.start_job(training(seed, clients_required=3))
        tasks = await fleet.tasks()
        messages = [
            client.update(task, await client.upload(one_hot(index)))
            for index, (client, task) in enumerate(zip(fleet.clients, tasks, strict=True))
        ]
        await fleet.clients[0].send(messages[0])
        with stopped(server):
            sending = [asyncio.create_task(fleet.clients[n].send(messages[n])) for n in (1, 2)]
            for client in fleet.clients:
                await assert_clients_notice_nothing(client)
            await eventually(lambda: _is(len(combiner.app.inbox) == 2), "both updates at the combiner")
            assert not any(task.done() for task in sending)
        for reply in await asyncio.gather(*sending):
            assert reply.response == "RECEIVED ModelUpdate  from client  "
        job = await combiner.operator.wait_job(job_id)
    assert (job.state, list(job.rejected), list(job.unrecorded)) == (pb.SUCCEEDED, [], [])
    assert await weights_of(combiner, job) == shares(1, 1, 1)


async def _is(condition: bool) -> bool:
    return condition


async def test_a_round_goes_on_when_redis_is_killed_and_comes_back(server: Server, frail: Stack) -> None:
    """Streams stay open, nobody is taken for lost, and each update counts once."""
    combiner = await frail.combiner(windows=SHORT, answer_hold_seconds=0.1)
    seed = await put_seed(combiner)
    async with Connected(combiner, 3, beat=True) as fleet:
        config = training(seed, clients_required=3, client_grace=0.1)
        job_id = await combiner.operator.start_job(config)
        tasks = await fleet.tasks()
        await fleet.clients[0].train(tasks[0], 0)
        await until_job(combiner.operator, job_id, lambda job: len(job.accepted) == 1, "one is accepted")
        server.kill()
        client = fleet.clients[1]
        sending = asyncio.create_task(client.send(client.update(tasks[1], await client.upload(one_hot(1)))))
        await assert_clients_notice_nothing(fleet.clients[1])
        nobody = fedn_pb2.ModelValidation(sender=client.messages.heartbeat.sender)
        assert (await client.send(nobody)).response == "RECEIVED ModelValidation  from client  "
        newcomer = combiner.client("newcomer").open()
        reply = await client.link.connector.AcceptingClients(fedn_pb2.ConnectionRequest())
        assert reply.status == fedn_pb2.TRY_AGAIN_LATER
        for rpc in (
            "Control/Report",
            "Control/Start",
            "Reducer/GetGlobalModel",
            "Connector/ListActiveClients",
        ):
            assert await _code(combiner, rpc, seed) == grpc.StatusCode.UNAVAILABLE
        assert not sending.done()
        server.start()
        await sending
        await fleet.clients[2].train(tasks[2], 2)
        job = await combiner.operator.wait_job(job_id)
        assert not any(stream.call.done() for stream in (*fleet.streams, newcomer))
        # What came meanwhile is registered by now or soon, and is served.
        next_id = await combiner.operator.start_job(training(seed, clients_required=4))
        await newcomer.next()
        await combiner.operator.cancel_job(next_id)
    assert (job.state, list(job.failed), list(job.rejected)) == (pb.SUCCEEDED, [], [])
    assert await weights_of(combiner, job) == shares(1, 1, 1)


async def _code(combiner: Replica, rpc: str, seed: str) -> grpc.StatusCode:
    pairs = {"task": "training", "round_id": "1", "model_id": seed}
    request = fedn_pb2.ControlRequest(
        parameter=[fedn_pb2.Parameter(key=key, value=value) for key, value in pairs.items()]
    )
    body = request.SerializeToString() if rpc == "Control/Start" else b""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await combiner.operator.link.unary_unary(f"/grpc.{rpc}")(body, timeout=DEADLINE)
    return caught.value.code()


async def test_reconnections_during_an_outage_leave_nothing_behind(server: Server, frail: Stack) -> None:
    combiner = await frail.combiner()
    client = combiner.client("c0")
    staying = client.open()
    await until_streams(combiner, 1)
    server.kill()
    for _ in range(400):
        stream = client.open()
        await eventually(lambda: _is(len(combiner.app.hub) == 2), "the stream to open")
        stream.call.cancel()
        await eventually(lambda: _is(len(combiner.app.hub) == 1), "the stream to close")
    # One for each attempt to reach Redis meanwhile; the roster may know of that stream.
    assert combiner.app.hub.unregistered < 100
    server.start()
    await until_streams(combiner, 1)
    [presence] = await combiner.state.roster.presence(["c0"])
    assert presence.trainer_streams == 1
    assert not staying.call.done()


async def test_a_watcher_lives_through_an_outage(server: Server, frail: Stack) -> None:
    combiner = await frail.combiner()
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        job_id = await combiner.operator.start_job(training(seed))
        task = await fleet.streams[0].next()
        waiting = asyncio.create_task(combiner.operator.wait_job(job_id))
        await until_job(combiner.operator, job_id, lambda job: job.phase == "collecting", "is watched")
        server.kill()
        await assert_clients_notice_nothing(fleet.clients[0])
        server.start()
        await fleet.clients[0].train(task, 0)
        assert (await asyncio.wait_for(waiting, DEADLINE)).state == pb.SUCCEEDED


async def test_an_update_is_confirmed_after_the_hold_and_recorded_later(server: Server, frail: Stack) -> None:
    combiner = await frail.combiner(update_hold_seconds=0.2)
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        client = fleet.clients[0]
        job_id = await combiner.operator.start_job(training(seed))
        task = await fleet.streams[0].next()
        message = client.update(task, await client.upload(one_hot(0)))
        with stopped(server):
            assert (await client.send(message)).response == "RECEIVED ModelUpdate  from client  "
            assert len(combiner.app.inbox) == 1
        job = await combiner.operator.wait_job(job_id)
    assert (job.state, list(job.unrecorded)) == (pb.SUCCEEDED, [])
    assert await weights_of(combiner, job) == shares(1)


async def test_an_update_that_comes_too_late_for_the_journal_is_listed_as_unrecorded(stack: Stack) -> None:
    """It was confirmed; its job was over before the store was back."""
    combiner = await stack.combiner(update_hold_seconds=0.2)
    seed = await put_seed(combiner)
    async with Connected(combiner, 1) as fleet:
        job_id = await combiner.operator.start_job(training(seed))
        client = fleet.clients[0]
        message = client.update(await fleet.streams[0].next(), await client.upload(one_hot(0)))
        combiner.store.away = True
        assert (await client.send(message)).response == "RECEIVED ModelUpdate  from client  "
        await combiner.operator.cancel_job(job_id)
        combiner.store.away = False
        job = await _unrecorded(combiner, job_id)
    assert list(job.unrecorded) == ["c0"]
    assert reasons(job.rejected) == {"c0": "late"}


async def _unrecorded(combiner: Replica, job_id: str) -> pb.Job:
    async def listed() -> bool:
        return bool((await combiner.operator.get_job(job_id)).unrecorded)

    await eventually(listed, "the update to be listed")
    return await combiner.operator.get_job(job_id)


async def test_validation_answers_are_confirmed_after_their_own_hold(server: Server, frail: Stack) -> None:
    combiner = await frail.combiner(answer_hold_seconds=0.2)
    seed = await put_seed(combiner)
    async with Connected(combiner, 1, VALIDATION_STREAM) as fleet:
        job_id = await combiner.operator.start_job(training(seed, task="validation"))
        task = await fleet.streams[0].next()
        with stopped(server):
            await fleet.clients[0].validate(task, loss=1.0)
            assert len(combiner.app.inbox) == 1
        job = await combiner.operator.wait_job(job_id)
    assert (job.state, list(job.accepted)) == (pb.SUCCEEDED, ["c0"])


async def test_a_round_waits_for_a_store_that_is_away(stack: Stack) -> None:
    """Before an update is read, and before the aggregate is written: each is folded once all the same."""
    combiner = await stack.combiner()
    seed = await put_seed(combiner)
    store = combiner.store
    async with Connected(combiner, 2) as fleet:
        job_id = await combiner.operator.start_job(training(seed, clients_required=2))
        tasks = await fleet.tasks()
        messages = [
            client.update(task, await client.upload(one_hot(index)), index + 1)
            for index, (client, task) in enumerate(zip(fleet.clients, tasks, strict=True))
        ]
        for client, message in zip(fleet.clients, messages, strict=True):
            store.away, store.refusals = True, 0
            sending = asyncio.create_task(client.send(message))
            await eventually(lambda: _is(store.refusals > 0), "the store to be asked")
            store.away = False
            await sending
        job = await combiner.operator.wait_job(job_id)
    assert (job.state, list(job.rejected)) == (pb.SUCCEEDED, [])
    assert await weights_of(combiner, job) == shares(1, 2)


async def test_missed_events_lose_no_update(combiner: Replica) -> None:
    """Every few steps the log says that something was missed: the round reads the journal again."""
    seed = await put_seed(combiner)
    async with Connected(combiner, 8) as fleet:
        job_id = await combiner.operator.start_job(training(seed, clients_required=8))
        tasks = await fleet.tasks()

        async def answer(index: int) -> None:
            await fleet.clients[index].train(tasks[index], index, index + 1)
            combiner.app.feed.dispatch(Event(seq="0-0", what="resync"))

        await asyncio.gather(*(answer(index) for index in range(8)))
        job = await combiner.operator.wait_job(job_id)
    assert (job.state, len(job.accepted)) == (pb.SUCCEEDED, 8)
    assert await weights_of(combiner, job) == shares(*range(1, 9))
