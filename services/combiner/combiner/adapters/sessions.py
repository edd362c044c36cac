"""Sessions: one hash each, with the owner's part as one JSON document in it.

The document holds the results of the round under way only, so that it does not grow with the rounds; those of
earlier rounds, which nothing changes any more, are a list.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, Final

from combiner.adapters import codec
from combiner.adapters.connection import Connection
from combiner.adapters.journal import claimed
from combiner.domain.types import Job, NewJob, RoundResult, Session, State
from combiner.ports import Lease

_PAGE = 50
_RESULTS: Final = 100  # read at once
_RECENT: Final = 10  # results in the document: a release without the list counts the tries of a round there


def _session(fields: Sequence[str]) -> Session:
    session = codec.session(fields)
    assert session is not None, "a script answered with a session that does not exist"
    return session


def _settled(session: Session) -> tuple[Sequence[RoundResult], Session]:
    """The results that leave the document, and the session without them."""
    round_ids = [result.round_id for result in session.results]
    number = max(round_ids.index(round_ids[-1]), len(round_ids) - _RECENT) if round_ids else 0
    settled = session.results[:number]
    done = sum(result.state is State.SUCCEEDED for result in settled)
    return settled, replace(
        session,
        results=session.results[number:],
        earlier_done=session.earlier_done + done,
        earlier_failed=session.earlier_failed + len(settled) - done,
    )


class RedisSessions:
    """`ports.Sessions`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._run = connection.run

    async def start(self, session: Session) -> Session:
        entry = {"session_id": session.session_id, "doc": codec.session_doc(session)}
        return _session(await self._run("session_start", session=entry))

    async def get(self, session_id: str) -> Session | None:
        return codec.session((await self._run("session_get", ids=[session_id]))[0])

    async def list(self, *, limit: int = 1000) -> AsyncIterator[Session]:
        ids = (await self._run("ids", index="all:session", limit=limit))[::-1]
        for start in range(0, len(ids), _PAGE):
            for fields in await self._run("session_get", ids=ids[start : start + _PAGE]):
                session = codec.session(fields)
                if session is not None:
                    yield session

    async def earlier(self, session: Session, start: int = 0) -> AsyncIterator[Sequence[RoundResult]]:
        key = self._connection.key(f"session-results:{session.session_id}")
        for first in range(start, session.earlier, _RESULTS):
            last = min(first + _RESULTS, session.earlier) - 1
            texts = await self._connection.command("LRANGE", key, first, last)
            yield [codec.round_result(json.loads(text)) for text in texts]

    async def unended(self) -> Sequence[str]:
        ids: Sequence[str] = await self._run("unended", kind="session")
        return ids

    async def claim(self, replica: str) -> Lease | None:
        return claimed("session", await self._run("claim", kind="session", replica=replica))

    async def advance(
        self, lease: Lease, session: Session, job: NewJob | None, finished: Job | None = None
    ) -> Session:
        if lease.id != session.session_id:
            raise ValueError(f"{lease.work} does not allow to change session {session.session_id}")
        settled, session = _settled(session)
        entry = {
            "session_id": session.session_id,
            "state": session.state,
            "reason": session.reason,
            "current_job_id": session.current_job_id,
            "version": session.version,
            "doc": codec.session_doc(session),
            "earlier_done": session.earlier_done,
            "earlier_failed": session.earlier_failed,
            "settled": [codec.dumps(dataclasses.asdict(result)) for result in settled],
        }
        extra: dict[str, Any] = {"job": codec.new_job(job)} if job else {}
        if finished is not None:
            extra["finished"] = {
                "job_id": finished.job_id,
                "state": finished.state,
                "model_id": finished.model_id,
            }
        return _session(
            await self._run("session_advance", work=lease.work, token=lease.token, session=entry, **extra)
        )

    async def cancel(self, session_id: str, reason: str) -> Session | None:
        fields = await self._run("session_cancel", session_id=session_id, reason=reason)
        return codec.session(fields) if fields else None
