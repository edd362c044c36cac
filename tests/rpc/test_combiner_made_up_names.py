"""Messages under made-up names: Redis does not fill, and who is there goes on.

REDIS_FILL=full: 70,000 names, and the memory that the stack in containers has; else a 32nd of both.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import redis

from fedcombiner.wire.pb import fedn_pb2
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.contract.state_kit import running_server
from tests.rpc.combiner_kit import (
    DEADLINE,
    Connected,
    Stack,
    eventually,
    no_task_left,
    one_hot,
    put_seed,
    shares,
    training,
    weights_of,
)

FULL = os.environ.get("REDIS_FILL") == "full"
SCALE = 1 if FULL else 32
NAMES, MAXMEMORY = 70_000 // SCALE, 512 // SCALE * 1024 * 1024
AT_ONCE = 50
VALUES = 32
MIB = 1024 * 1024


@pytest.mark.timeout(1800 if FULL else 120)
async def test_made_up_names_fill_nothing(tmp_path: Path) -> None:
    with running_server("--appendonly", "no", "--maxmemory", str(MAXMEMORY)) as server:
        async with no_task_left():
            stack = Stack(server.url, "fc:", tmp_path)
            try:
                with redis.Redis.from_url(server.url) as raw:
                    await _attacked(stack, raw)
            finally:
                await stack.close()


async def _attacked(stack: Stack, raw: redis.Redis) -> None:
    combiner = await stack.combiner()
    seed = await put_seed(combiner)
    attacker = combiner.client("attacker")
    attributes = [
        fedn_pb2.AttributeElem(key=f"{number:02}" + "k" * 62, value="v" * 256) for number in range(VALUES)
    ]
    before = raw.info("memory")["used_memory"]

    async def attack(first: int) -> None:
        for number in range(first, NAMES, AT_ONCE):
            sender = fedn_pb2.Client(name=f"made-up-{number}", role=fedn_pb2.CLIENT)
            message = fedn_pb2.AttributeMessage(sender=sender, attributes=attributes)
            answer = await attacker.link.combiner.SendAttributeMessage(message, timeout=DEADLINE)
            assert answer.response.startswith("RECEIVED")

    async with Connected(combiner, 2, beat=True) as fleet:
        await asyncio.gather(*(attack(first) for first in range(AT_ONCE)))

        sender = fleet.clients[0].messages.heartbeat.sender
        message = fedn_pb2.AttributeMessage(
            sender=sender, attributes=[fedn_pb2.AttributeElem(key="last", value="x")]
        )
        await attacker.link.combiner.SendAttributeMessage(message, timeout=DEADLINE)

        async def last_is_kept() -> bool:
            return bool(raw.keys("fc:told:c0"))

        await eventually(last_is_kept, "what came after the attack")
        assert 0 < raw.zcard("fc:guests") <= NAMES / 4
        grown = raw.info("memory")["used_memory"] - before
        assert grown < MAXMEMORY / 8, f"{grown / MIB:.1f} MiB"
        assert not raw.keys("fc:told:made-up-*")

        await combiner.operator.collect_garbage(dry_run=False)
        await put_seed(combiner)
        session = await combiner.operator.start_session({"rounds": 1}, model_id=seed)
        await combiner.operator.cancel_session(session.session_id)
        job_id = await combiner.operator.start_job(training(seed, clients_required=2))
        tasks = await fleet.tasks()
        for index, (client, task) in enumerate(zip(fleet.clients, tasks, strict=True)):
            await client.send(client.update(task, await client.upload(one_hot(index))))
        job = await combiner.operator.wait_job(job_id)
    assert job.state == pb.SUCCEEDED
    assert await weights_of(combiner, job) == shares(1, 1)
