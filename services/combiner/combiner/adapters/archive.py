"""The whole of what is worth keeping, as records, and back again.

Only records travel; every index, queue and open task is derived from them when they are put back. Each record
is read in one step, and in an order in which whatever one of them names is read after it: so what is read
while rounds go on fits together, too.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

from combiner.adapters import codec
from combiner.adapters.connection import Connection
from combiner.adapters.journal import RedisJobs
from combiner.adapters.limits import SCHEMA
from combiner.adapters.sessions import RedisSessions
from combiner.ports import NotEmpty, QueueFull, Unreadable

_PAGE: Final = 20
_CLEARED_AT_ONCE: Final = 20

Record = Mapping[str, Any]
_Made = Callable[[Any], dict[str, Any]]


class RedisArchive:
    """`ports.Archive`."""

    schema = SCHEMA

    def __init__(self, connection: Connection) -> None:
        self._run = connection.run
        self._sessions = RedisSessions(connection)
        self._jobs = RedisJobs(connection)

    async def dump(self) -> AsyncIterator[Record]:
        yield {"kind": "settings", "values": codec.pairs(await self._run("settings_get"))}
        committed, put = await self._run("archive_newest")
        yield {"kind": "newest", "committed": committed, "put": put}
        async for record in self._all("session", "session_get", _session_record):
            yield record
            async for part in self._results(record):
                yield part
        async for record in self._all("job", "archive_jobs", _job_record):
            yield record
            async for part in self._answers(record):
                yield part
        async for record in self._all("model", "model_get", _model_record):
            yield record

    async def begin(self, *, replace: bool) -> None:
        try:
            await self._run("archive_begin", replace=replace)
        except QueueFull as error:
            raise NotEmpty(str(error)) from error
        while replace and await self._run("archive_clear", most=_CLEARED_AT_ONCE):
            pass

    async def put(self, record: Record) -> bool:
        kind = str(record.get("kind"))
        if kind not in _CHECKED:
            raise Unreadable(f"{kind[:100]!r} is no kind of a record")
        try:
            arguments = _CHECKED[kind](record)
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise Unreadable(
                f"not a {kind} as this version knows it ({type(error).__name__}: {error})"
            ) from error
        return bool(await self._run(f"archive_{kind}", **arguments))

    async def finish(self, *, committed: str, put: str) -> None:
        await self._run("archive_end", committed=committed, put=put)

    async def _results(self, record: Record) -> AsyncIterator[Record]:
        session = codec.session(_flat(record["fields"]))
        assert session is not None
        at = 0
        async for page in self._sessions.earlier(session):
            results = [codec.dumps(dataclasses.asdict(result)) for result in page]
            yield {"kind": "results", "id": record["id"], "at": at, "results": results}
            at += len(results)

    async def _answers(self, record: Record) -> AsyncIterator[Record]:
        job = codec.job(_job_dump(record))
        assert job is not None
        at = 0
        for clients in job.answer_pages():
            answers = await self._jobs.answers(job.job_id, clients)
            yield {"kind": "answers", "id": job.job_id, "at": at, "answers": dict(answers)}
            at += len(answers)

    async def _all(self, kind: str, script: str, make: _Made) -> AsyncIterator[Record]:
        """The records of a kind, the oldest first; those that go meanwhile are left out."""
        flat = await self._run("archive_ids", kind=kind)
        for start in range(0, len(flat), 2 * _PAGE):
            ids = flat[start : start + 2 * _PAGE : 2]
            seqs = flat[start + 1 : start + 2 * _PAGE : 2]
            for record_id, seq, dump in zip(ids, seqs, await self._run(script, ids=ids), strict=True):
                made = make(dump)
                if made["fields"]:
                    yield {"kind": kind, "id": record_id, "seq": int(float(seq)), **made}


def _session_record(dump: Sequence[str]) -> dict[str, Any]:
    return {"fields": codec.pairs(dump)}


def _job_record(dump: Sequence[Sequence[str]]) -> dict[str, Any]:
    fields, clients, others, unrecorded = dump
    return {
        "fields": codec.pairs(fields),
        "clients": codec.pairs(clients),
        "others": codec.pairs(others),
        "unrecorded": list(unrecorded),
    }


def _job_dump(record: Record) -> tuple[list[str], list[str], list[str], list[str]]:
    """As the scripts answer with it."""
    return (
        _flat(record["fields"]),
        _flat(record["clients"]),
        _flat(record["others"])[1::2],
        [str(client) for client in record["unrecorded"]],
    )


def _model_record(dump: Sequence[Any]) -> dict[str, Any]:
    fields, client_metrics = dump
    return {"fields": codec.pairs(fields), "client_metrics": client_metrics or None}


def _flat(record: Mapping[str, str]) -> list[str]:
    """As Redis would answer with it. Raises TypeError: not text everywhere."""
    flat = [text for item in record.items() for text in item]
    if not all(isinstance(text, str) for text in flat):
        raise TypeError("a field is not text")
    return flat


def _seq(record: Record) -> int:
    """Its place among those of its kind: what a score of Redis holds exactly."""
    seq = int(record["seq"])
    if not 0 < seq < 2**53:
        raise ValueError("its seq is out of range")
    return seq


def _checked_session(record: Record) -> dict[str, Any]:
    session = codec.session(_flat(record["fields"]))
    if session is None or session.session_id != record["id"]:
        raise ValueError("its id is another")
    return {"fields": record["fields"], "seq": _seq(record)}


def _checked_results(record: Record) -> dict[str, Any]:
    for text in record["results"]:
        codec.round_result(json.loads(text))
    return {"id": str(record["id"]), "at": _at(record), "results": record["results"]}


def _checked_answers(record: Record) -> dict[str, Any]:
    _flat(record["answers"])
    return {"id": str(record["id"]), "at": _at(record), "answers": record["answers"]}


def _at(record: Record) -> int:
    """Its place among the parts of its owner."""
    at = int(record["at"])
    if not 0 <= at < 2**53:
        raise ValueError("its place is out of range")
    return at


def _checked_job(record: Record) -> dict[str, Any]:
    job = codec.job(_job_dump(record))
    if job is None or job.job_id != record["id"]:
        raise ValueError("its id is another")
    int(record["fields"]["weight"])
    answers = record.get("answers", {})  # in backups of version 1
    _flat(answers)
    names = ("fields", "clients", "others", "unrecorded")
    return {**{name: record[name] for name in names}, "answers": answers, "seq": _seq(record)}


def _checked_model(record: Record) -> dict[str, Any]:
    client_metrics = record["client_metrics"]
    model = codec.model((_flat(record["fields"]), client_metrics))
    if model is None or model.model_id != record["id"]:
        raise ValueError("its id is another")
    arguments = {
        "model_id": model.model_id,
        "session_id": model.session_id,
        "fields": record["fields"],
        "seq": _seq(record),
    }
    return arguments if client_metrics is None else {**arguments, "client_metrics": str(client_metrics)}


_CHECKED: Final[Mapping[str, Callable[[Record], dict[str, Any]]]] = {
    "session": _checked_session,
    "job": _checked_job,
    "model": _checked_model,
    "results": _checked_results,
    "answers": _checked_answers,
}
