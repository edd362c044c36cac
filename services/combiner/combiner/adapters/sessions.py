"""Sessions: one hash each; the owner's part is one JSON document in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from combiner.adapters import codec
from combiner.adapters.connection import Connection
from combiner.adapters.journal import claimed
from combiner.domain.types import NewJob, Session
from combiner.ports import Lease

_PAGE = 50


def _session(fields: Sequence[str]) -> Session:
    session = codec.session(fields)
    assert session is not None, "a script answered with a session that does not exist"
    return session


class RedisSessions:
    """`ports.Sessions`."""

    def __init__(self, connection: Connection) -> None:
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

    async def unended(self) -> Sequence[str]:
        ids: Sequence[str] = await self._run("unended", kind="session")
        return ids

    async def claim(self, replica: str) -> Lease | None:
        return claimed("session", await self._run("claim", kind="session", replica=replica))

    async def advance(self, lease: Lease, session: Session, job: NewJob | None) -> Session:
        if lease.id != session.session_id:
            raise ValueError(f"{lease.work} does not allow to change session {session.session_id}")
        entry = {
            "session_id": session.session_id,
            "state": session.state,
            "reason": session.reason,
            "current_job_id": session.current_job_id,
            "version": session.version,
            "doc": codec.session_doc(session),
        }
        extra = {"job": codec.new_job(job)} if job else {}
        return _session(
            await self._run("session_advance", work=lease.work, token=lease.token, session=entry, **extra)
        )

    async def cancel(self, session_id: str, reason: str) -> Session | None:
        fields = await self._run("session_cancel", session_id=session_id, reason=reason)
        return codec.session(fields) if fields else None
