"""A Redis that is full in the middle of a round, through real servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis

from fedcombiner.servicekit.errors import ResourceExhausted
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.contract.state_kit import Server
from tests.rpc.combiner_kit import (
    Connected,
    Stack,
    eventually,
    one_hot,
    put_seed,
    shares,
    training,
    weights_of,
)


@contextmanager
def full(server: Server) -> Iterator[None]:
    with redis.Redis.from_url(server.url) as raw:
        raw.config_set("maxmemory", "1mb")
        yield
        raw.config_set("maxmemory", "0")


async def test_a_round_ends_and_room_is_made_on_a_full_redis(server: Server, frail: Stack) -> None:
    combiner = await frail.combiner()
    operator = combiner.operator
    seed = await put_seed(combiner)
    async with Connected(combiner, 2, beat=True) as fleet:
        job_id = await operator.start_job(training(seed, clients_required=2))
        tasks = await fleet.tasks()
        queued = await operator.start_job(training(seed, clients_required=2))
        session = await operator.start_session({"rounds": 3}, model_id=seed)
        with full(server):
            for index, (client, task) in enumerate(zip(fleet.clients, tasks, strict=True)):
                await client.send(client.update(task, await client.upload(one_hot(index))))
            job = await operator.wait_job(job_id)
            assert job.state == pb.SUCCEEDED
            assert await weights_of(combiner, job) == shares(1, 1)
            assert (await operator.cancel_job(queued)).state == pb.CANCELLED
            assert (await operator.cancel_session(session.session_id)).state == pb.CANCELLED
            await operator.collect_garbage(dry_run=False)
            await operator.prune_models(1, dry_run=False)
            with pytest.raises(ResourceExhausted, match=r"full.*combiner model prune"):
                await operator.start_job(training(seed))

            async def seen() -> bool:
                return (await operator.stack_status()).clients == 2

            await eventually(seen, "both clients, whose heartbeats count")
        again = await operator.start_job(training(seed, clients_required=2))
        await fleet.tasks()
        await operator.cancel_job(again)
