"""One client during an outage of Redis: what it sends costs the others nothing."""

from __future__ import annotations

import asyncio

from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.contract.state_kit import Server
from tests.rpc.combiner_kit import (
    DEADLINE,
    Connected,
    Stack,
    eventually,
    one_hot,
    put_seed,
    shares,
    training,
    weights_of,
)

CLIENTS = 5
FLOOD = 1024


async def test_a_flood_of_answers_pushes_no_update_out(server: Server, frail: Stack) -> None:
    combiner = await frail.combiner(answer_hold_seconds=0.2, update_hold_seconds=0.2)
    seed = await put_seed(combiner)
    flood = combiner.client("flood")
    async with Connected(combiner, CLIENTS) as fleet:
        job_id = await combiner.operator.start_job(training(seed, clients_required=CLIENTS))
        tasks = await fleet.tasks()
        messages = [
            client.update(task, await client.upload(one_hot(index)))
            for index, (client, task) in enumerate(zip(fleet.clients, tasks, strict=True))
        ]
        server.kill()
        await asyncio.gather(
            *(client.send(message) for client, message in zip(fleet.clients, messages, strict=True))
        )
        answer = fedn_pb2.ModelValidation(sender=flood.messages.heartbeat.sender, data="x" * 65_536)
        for start in range(0, FLOOD, 128):
            await asyncio.wait_for(asyncio.gather(*(flood.send(answer) for _ in range(128))), DEADLINE)
            assert len(combiner.app.inbox) >= CLIENTS, f"an update was dropped after {start} answers"
        assert combiner.app.inbox.given_up > 0
        server.start()
        job = await combiner.operator.wait_job(job_id)
    assert (job.state, list(job.rejected), list(job.unrecorded)) == (pb.SUCCEEDED, [], [])
    assert await weights_of(combiner, job) == shares(*[1] * CLIENTS)


async def test_a_dropped_answer_to_a_task_is_listed_in_its_job(server: Server, frail: Stack) -> None:
    """A client that floods by itself loses only what is its own, and its job says so."""
    combiner = await frail.combiner(answer_hold_seconds=0.2, update_hold_seconds=0.2)
    seed = await put_seed(combiner)
    async with Connected(combiner, 2) as fleet:
        job_id = await combiner.operator.start_job(training(seed, clients_required=2))
        tasks = await fleet.tasks()
        client, other = fleet.clients
        message = client.update(tasks[0], await client.upload(one_hot(0)))
        server.kill()
        stray = fedn_pb2.ModelUpdate(sender=message.sender, model_update_id="none")
        await asyncio.gather(*(client.send(stray) for _ in range(100)))
        await client.send(message)
        server.start()

        async def listed() -> bool:
            job = await combiner.operator.get_job(job_id)
            return list(job.unrecorded) == [client.name] and len(combiner.app.inbox) == 0

        await eventually(listed, "the dropped update to be listed, and the others to be recorded")
        # Sent again, as newer clients do, it counts and is no longer listed.
        await client.send(message)
        await other.train(tasks[1], 1)
        job = await combiner.operator.wait_job(job_id)
    assert (job.state, list(job.unrecorded)) == (pb.SUCCEEDED, [])
    assert await weights_of(combiner, job) == shares(1, 1)
