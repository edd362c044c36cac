"""Objects and records of any age, for the tests of house-keeping."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta

from combiner.domain.types import Model

from fedcombiner.modelstorage.store import Kind, ObjectKey
from tests.rpc.combiner_kit import Replica, eventually, zeros


async def put_object(replica: Replica, kind: Kind, object_id: str, *, days_old: float = 0) -> ObjectKey:
    # Before that, a combiner takes what it finds in the store of a new Redis for models.
    await eventually(replica.state.models.is_complete, "a Redis that knows the models of the store")
    content, key = zeros(), ObjectKey(kind, object_id)
    async with replica.store.writer(key, max_bytes=len(content)) as writer:
        await writer.write(content)
        await writer.commit()
    if days_old:
        await grow_old(replica)
    age(replica, key, days_old)
    return key


def age(replica: Replica, key: ObjectKey, days: float) -> None:
    path = replica.store._root / key.kind / key.id / "meta.json"
    record = json.loads(path.read_text())
    record["modified"] = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    aged = path.with_name("meta.json.aged")
    aged.write_text(json.dumps(record))
    aged.replace(path)  # in one step: the combiner may be reading it


async def put_made_model(replica: Replica, model_id: str, session_id: str = "s1", **metrics: float) -> str:
    """A model as a round makes it."""
    key = await put_object(replica, "models", model_id)
    info = await replica.store.head(key)
    assert info is not None
    made = Model(
        model_id,
        session_id=session_id,
        round_id=model_id,
        job_id=str(uuid.uuid4()),
        size=info.size,
        sha256=info.sha256,
        metrics=metrics,
        client_metrics={"c0": metrics} if metrics else {},
    )
    await replica.state.models.register(made)
    return model_id


async def grow_old(replica: Replica) -> None:
    """As if the state had been kept for a year."""
    connection = replica.state._connection
    year_ago = await replica.state.log.now_ms() - 366 * 86_400_000
    await connection.command("SET", connection.key("born"), year_ago)


async def objects(replica: Replica, kind: Kind) -> set[str]:
    return {info.key.id async for info in replica.store.list(kind)}
