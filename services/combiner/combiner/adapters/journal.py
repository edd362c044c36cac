"""The journal of jobs."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from combiner.adapters import codec
from combiner.adapters.connection import Connection
from combiner.domain.metrics import Figures
from combiner.domain.types import Job, Model, NewJob, Outcome, State
from combiner.ports import Ask, JobBrief, Lease, Received, Verdict

MAX_ANSWER_BYTES = 64 * 1024
MAX_DETAIL = 500  # characters
MAX_LEFT_OUT = 200  # clients
_PAGE = 20  # jobs; one of them can have thousands of clients


def claimed(kind: str, reply: Sequence[Any] | None) -> Lease | None:
    return Lease(f"{kind}:{reply[0]}", int(reply[1])) if reply else None


def _received(reply: Sequence[str]) -> Received:
    return Received(Verdict(reply[0]), reply[1], reply[2])


def _job(dump: Sequence[Sequence[str]]) -> Job:
    job = codec.job(dump)
    assert job is not None, "a script answered with a job that does not exist"
    return job


def _texts(figures: Figures) -> tuple[str, str]:
    """The means, and the clients' own, in small pieces: the encoder of JSON lets no other thread run."""
    rows = [f"{codec.dumps(client)}:{codec.dumps(own)}" for client, own in figures.clients.items()]
    return codec.dumps(figures.means()), f"{{{','.join(rows)}}}"


class RedisJobs:
    """`ports.Jobs`. See docs/state.md for the keys, docs/jobs.md for the events."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._run = connection.run

    async def submit(self, job: NewJob) -> Job:
        return _job(await self._run("job_submit", job=codec.new_job(job)))

    async def get(self, job_id: str) -> Job | None:
        return codec.job((await self._run("job_get", ids=[job_id]))[0])

    async def unended(self) -> Sequence[str]:
        ids: Sequence[str] = await self._run("unended", kind="job")
        return ids

    async def list(self, *, session_id: str = "", limit: int = 1000) -> AsyncIterator[Job]:
        index = f"session-jobs:{session_id}" if session_id else "all:job"
        ids = (await self._run("ids", index=index, limit=limit))[::-1]
        for start in range(0, len(ids), _PAGE):
            for dump in await self._run("job_get", ids=ids[start : start + _PAGE]):
                job = codec.job(dump)
                if job is not None:
                    yield job

    async def claim(self, replica: str) -> Lease | None:
        return claimed("job", await self._run("claim", kind="job", replica=replica))

    async def open(
        self,
        lease: Lease,
        asks: Sequence[Ask],
        timeout_ms: int,
        task_data: str,
        *,
        format: str = "",
        left_out: Sequence[Outcome] = (),
    ) -> Job:
        pairs = [(ask.client, ask.task_id) for ask in asks]
        shown = [(o.client, o.reason, o.detail[:MAX_DETAIL]) for o in left_out[:MAX_LEFT_OUT]]
        return _job(
            await self._leased(
                "job_open",
                lease,
                asks=pairs,
                timeout_ms=timeout_ms,
                task_data=task_data,
                format=format,
                left_out=codec.dumps(shown) if shown else "",
            )
        )

    async def receive(
        self, *, client: str, task_id: str, job_id: str, update_id: str, num_examples: int, empty: bool
    ) -> Received:
        if not update_id:
            raise ValueError("an update without an id cannot be received; refuse it")
        return _received(
            await self._run(
                "job_receive",
                client=client,
                task_id=task_id,
                job_id=job_id,
                update_id=update_id,
                num_examples=num_examples,
                empty=empty,
            )
        )

    async def refuse(
        self, *, client: str, task_id: str, job_id: str, reason: str, detail: str, update_id: str = ""
    ) -> Received:
        return _received(
            await self._run(
                "job_refuse",
                client=client,
                task_id=task_id,
                job_id=job_id,
                reason=reason,
                detail=detail[:MAX_DETAIL],
                update_id=update_id,
            )
        )

    async def answer(self, *, client: str, task_id: str, job_id: str, model_id: str, data: str) -> Received:
        size = len(data.encode())
        too_large = f"{size} bytes; at most {MAX_ANSWER_BYTES} are kept" if size > MAX_ANSWER_BYTES else None
        return _received(
            await self._run(
                "job_answer",
                client=client,
                task_id=task_id,
                job_id=job_id,
                model_id=model_id,
                data="" if too_large else data,
                digest=hashlib.sha256(data.encode()).hexdigest()[:16],
                **({"too_large": too_large} if too_large else {}),
            )
        )

    async def answers(self, job_id: str, clients: Sequence[str]) -> Mapping[str, str]:
        key = self._connection.key(f"answers:{job_id}")
        texts = await self._connection.command("HMGET", key, *clients) if clients else []
        return {client: text for client, text in zip(clients, texts, strict=True) if text is not None}

    async def accept(self, lease: Lease, client: str, *, folded: int = 0) -> None:
        await self._leased(
            "job_decide", lease, client=client, state="accepted", reason="", detail="", folded=folded
        )

    async def reject(self, lease: Lease, client: str, reason: str, detail: str) -> None:
        await self._leased(
            "job_decide", lease, client=client, state="rejected", reason=reason, detail=detail[:MAX_DETAIL]
        )

    async def fail_client(self, *, client: str, task_id: str, job_id: str, reason: str, detail: str) -> bool:
        changed = await self._run(
            "job_fail_client",
            client=client,
            task_id=task_id,
            job_id=job_id,
            reason=reason,
            detail=detail[:MAX_DETAIL],
        )
        return bool(changed)

    async def ask_again(self, lease: Lease, client: str, task_id: str) -> bool:
        return bool(await self._leased("job_ask_again", lease, client=client, task_id=task_id))

    async def close(self, lease: Lease, why: str, version: int = 0) -> Job:
        return _job(await self._leased("job_close", lease, why=why, version=version))

    async def commit(self, lease: Lease, model: Model, timings: Mapping[str, float]) -> None:
        await self._leased(
            "job_commit", lease, model=codec.model_entry(model), timings=codec.dumps(dict(timings))
        )

    async def end(
        self,
        lease: Lease,
        state: State,
        reason: str,
        *,
        timings: Mapping[str, float] | None = None,
        figures: Figures | None = None,
    ) -> None:
        if not state.ended:
            raise ValueError(f"{state} is not an end")
        extra: dict[str, str] = {}
        if timings is not None:
            extra["timings"] = codec.dumps(dict(timings))
        text = ""
        if figures is not None:
            extra["metrics"], text = await asyncio.to_thread(_texts, figures)
        await self._leased("job_end", lease, text=text, state=state, reason=reason, **extra)

    async def cancel(self, job_id: str, reason: str) -> Job | None:
        dump = await self._run("job_cancel", job_id=job_id, reason=reason)
        return codec.job(dump) if dump else None

    async def add_unrecorded(self, *, client: str, task_id: str, job_id: str) -> None:
        await self._run("job_unrecorded", client=client, task_id=task_id, job_id=job_id)

    async def counts(self) -> Mapping[str, int]:
        queued, running = await self._run("counts")
        return {State.QUEUED: queued, State.RUNNING: running}

    async def of_updates(self, update_ids: Sequence[str]) -> Mapping[str, JobBrief]:
        owners, jobs = await self._run("uploads_owners", ids=list(update_ids))
        known = {job_id: JobBrief(job_id, State(state), json.loads(config)) for job_id, state, config in jobs}
        return {
            update_id: known[job_id] for update_id, job_id in zip(update_ids, owners, strict=True) if job_id
        }

    async def _leased(self, script: str, lease: Lease, *, text: str = "", **arguments: object) -> Any:
        return await self._run(script, text=text, work=lease.work, token=lease.token, **arguments)
