"""Task queues: one per client, served by whichever replica has a stream of it."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from combiner.adapters.connection import Connection
from combiner.domain.types import Kind
from combiner.ports import Stream, Task


class LostReplies:
    """Which streams' claims were never answered: what was handed to them did not reach this process.

    Each claim marks what it hands out with a nonce. A stream whose claim got no reply claims with the same
    nonce again, and gets the same tasks again. Holds at most one entry for each open stream of this process.
    """

    def __init__(self) -> None:
        self._nonces: dict[str, str] = {}

    def nonces(self, streams: Sequence[Stream]) -> list[str]:
        fresh = uuid.uuid4().hex[:12]
        return [self._nonces.pop(stream.stream_id, fresh) for stream in streams]

    def lost(self, streams: Sequence[Stream], nonces: Sequence[str]) -> None:
        self._nonces.update((s.stream_id, nonce) for s, nonce in zip(streams, nonces, strict=True))

    def forget(self, stream: Stream) -> None:
        self._nonces.pop(stream.stream_id, None)


class RedisTasks:
    """`ports.Tasks`."""

    def __init__(self, connection: Connection, lost: LostReplies) -> None:
        self._run = connection.run
        self._lost = lost

    async def claim(self, streams: Sequence[Stream]) -> list[tuple[Stream, Task]]:
        if not streams:
            return []
        nonces = self._lost.nonces(streams)
        rows = [(s.stream_id, s.client, s.view, nonce) for s, nonce in zip(streams, nonces, strict=True)]
        try:
            tasks, jobs = await self._run("tasks_claim", streams=rows)
        except BaseException:
            self._lost.lost(streams, nonces)
            raise
        told = {job[0]: _JobPart(job) for job in jobs}
        return [_delivered(streams[number - 1], told, *task) for number, *task in tasks]

    async def put_raw(self, *, client: str, kind: Kind, task_id: str, raw: bytes) -> bool:
        text = base64.b64encode(raw).decode()
        return bool(await self._run("task_put_raw", client=client, kind=kind, task_id=task_id, raw=text))


class _JobPart:
    """What all tasks of a job have in common. The JSON object is parsed once, not for each client."""

    def __init__(self, row: Sequence[str]) -> None:
        self.job_id, self.session_id, self.model_id, data = row
        members = json.dumps(json.loads(data), ensure_ascii=False)[1:-1]
        self._head = f"{{{members}, " if members else "{"

    def data(self, task_id: str) -> str:
        return f'{self._head}"_task_id": {json.dumps(task_id)}}}'


def _delivered(
    stream: Stream, told: Mapping[str, _JobPart], task_id: str, kind: str, job_id: str, raw: str
) -> tuple[Stream, Task]:
    if not job_id:
        return stream, Task(task_id, stream.client, Kind(kind), "", "", "", "", base64.b64decode(raw))
    job: Any = told[job_id]
    task = Task(task_id, stream.client, Kind(kind), job_id, job.session_id, job.model_id, job.data(task_id))
    return stream, task
