"""Make the fixture of an old state: `python -m tests.upgrade.make_state tests/upgrade/fixtures/NAME.tar.xz`.

Run it in a checkout of the release whose state it is to be, with a copy of this directory where that release
has none. It runs that release as real processes, brings it into the middle of a round, kills everything at
once and packs what is on the disk.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from fedcombiner.client.link import Link, token_metadata
from fedcombiner.client.operator import OperatorClient
from fedcombiner.wire.pb import fedn_pb2 as fedn
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.faults.conductor import Point
from tests.faults.stack import Stack
from tests.upgrade import scene
from tests.upgrade.old_state import pack

PATIENCE_S: Final = 60.0
FAILS, SENDS_NONSENSE, ARRIVES_LAST = 2, 3, 4  # clients by index; the ones after them are silent
CONFIG: Final = {
    "clients_required": 5,
    "round_timeout": 600,
    "client_grace": 120,
    "wait_for_clients": 120,
    "seed": 1,
}


class HalfARound:
    """The clients' part in the round that is not to end: 0 and 1 answer, 2 fails, 3 uploads no model, 4
    waits for `last`, and the others are silent.
    """

    def __init__(self) -> None:
        self.last = asyncio.Event()

    async def act(self, index: int) -> bytes | None:
        if index == FAILS:
            raise RuntimeError("told to fail")
        if index == ARRIVES_LAST:
            await self.last.wait()
        if index > ARRIVES_LAST:
            await asyncio.Event().wait()
        return b"this is no model" if index == SENDS_NONSENSE else None


async def make(archive: Path) -> None:
    async with Stack(scene.SETTINGS, minio=False) as stack:
        async with OperatorClient(stack.gateway, token=scene.OPERATOR_TOKEN, patience=PATIENCE_S) as operator:
            secret = await _tokens(operator)
            await operator.put_model(scene.arrays_of(-1), name="the first", model_id="seed")
            async with scene.fleet(stack.gateway, secret):
                await _what_ends(operator)
            async with Link(stack.gateway, metadata=token_metadata(secret)) as link:
                await _tell(operator, link)
            half = HalfARound()
            async with scene.fleet(stack.gateway, secret, half.act):
                await _into_mid_round(stack, operator, half)
                shown = await scene.shown(operator)
                await _kill_all(stack)
        at_ms = _newest_ms(stack)
        pack(stack.directory, archive, {"at_ms": at_ms, "client_token": secret, "shown": shown})


async def _tokens(operator: OperatorClient) -> str:
    """One of each kind. Returns a client's."""
    await operator.list_tokens()  # waits for the gateway; making one is not repeated
    await operator.create_token("controller", name="of a controller")
    await operator.create_token("client", name="of one client", clients=["bound"], lifetime=30 * 86_400)
    revoked = await operator.create_token("client", name="revoked")
    await operator.revoke_token(revoked.token.token_id)
    return (await operator.create_token("client", name="of the fleet")).secret


async def _what_ends(operator: OperatorClient) -> None:
    """A session of two rounds, a prediction, a round that fails, and a session that is cancelled."""
    session = await operator.start_session(
        CONFIG | {"rounds": 2, "clients_required": scene.CLIENTS},
        model_id="seed",
        session_id=scene.FINISHED,
    )
    session = await operator.wait_session(session.session_id)
    assert session.state == pb.SUCCEEDED, session
    inference = await operator.start_job({"task": "inference", "model_id": session.model_id})
    assert (await operator.wait_job(inference)).state == pb.SUCCEEDED
    failed = await operator.start_job(
        {"task": "training", "model_id": "seed", "round_id": "1", "clients_required": 1000}
    )
    assert (await operator.wait_job(failed)).state == pb.FAILED
    await operator.start_session(CONFIG | {"clients_required": 1000}, session_id="cancelled", model_id="seed")
    assert (await operator.cancel_session("cancelled")).state == pb.CANCELLED


async def _tell(operator: OperatorClient, link: Link) -> None:
    """Other messages of clients: reports, a status, an answer that nobody asked for; and one with an id."""
    training = (await operator.list_jobs(session_id=scene.FINISHED))[0]
    sender = fedn.Client(name=scene.name_of(0), role=fedn.CLIENT)
    await link.combiner.SendModelMetric(
        fedn.ModelMetric(
            sender=sender,
            metrics=[fedn.MetricElem(key="train_loss", value=0.5)],
            round_id=training.round_id,
            session_id=training.session_id,
        )
    )
    await link.combiner.SendTelemetryMessage(
        fedn.TelemetryMessage(sender=sender, telemetries=[fedn.TelemetryElem(key="watts", value=7)])
    )
    await link.combiner.SendAttributeMessage(
        fedn.AttributeMessage(sender=sender, attributes=[fedn.AttributeElem(key="site", value="north")])
    )
    await link.connector.SendStatus(fedn.Status(sender=sender, status="a word", log_level=fedn.INFO))
    stranger = fedn.Client(name="stranger", client_id=str(uuid.uuid4()), role=fedn.CLIENT)
    await link.connector.SendHeartbeat(fedn.Heartbeat(sender=stranger))
    meta = json.dumps({"training_metadata": {"num_examples": 1}, "config": {"_job_id": training.job_id}})
    await link.combiner.SendModelUpdate(
        fedn.ModelUpdate(sender=stranger, model_id="seed", model_update_id=str(uuid.uuid4()), meta=meta)
    )
    await _until(lambda: _is_told(operator), "the reports are with their client")


async def _is_told(operator: OperatorClient) -> bool:
    clients = await operator.list_clients(all=True, details=True)
    told = {client.client: client.report for client in clients}[scene.name_of(0)]
    return bool(told.metrics and told.telemetry and told.attributes)


async def _into_mid_round(stack: Stack, operator: OperatorClient, half: HalfARound) -> None:
    """Two updates are accepted, one client has failed, one was rejected, one is received; three are asked."""
    running = CONFIG | {"rounds": 2}
    await operator.start_session(running, model_id="seed", session_id=scene.IN_MID_ROUND)
    await operator.start_session(CONFIG | {"rounds": 1}, model_id="seed", session_id=scene.QUEUED)

    async def has(**wanted: int) -> bool:
        jobs = await operator.list_jobs(session_id=scene.IN_MID_ROUND)
        return bool(jobs) and all(len(getattr(jobs[0], name)) == n for name, n in wanted.items())

    await _until(lambda: has(accepted=2, failed=1, rejected=1), "the quick ones are judged")
    await stack.conductor.arm(Point("combiner", "jobs.accept", "before"))
    half.last.set()
    await stack.conductor.reached()
    assert await has(asked=8, received=1, accepted=2, failed=1, rejected=1)


async def _kill_all(stack: Stack) -> None:
    for program in stack.programs.values():
        program.signal(signal.SIGKILL)
    for program in stack.programs.values():
        await program.ended()


def _newest_ms(stack: Stack) -> int:
    """When Redis was killed, by its own clock: nothing in its file is newer."""
    paths = list((stack.directory / "redis").rglob("*.incr.aof"))
    return int(max(path.stat().st_mtime for path in paths) * 1000)


async def _until(holds: Callable[[], Awaitable[Any]], what: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await holds():
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"not within {PATIENCE_S:g} s: {what}") from None


if __name__ == "__main__":
    asyncio.run(make(Path(sys.argv[1])))
