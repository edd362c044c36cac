"""Between the hashes in Redis and the values of `domain.types`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from combiner.domain.types import (
    ClientRecord,
    ClientState,
    Job,
    Kind,
    Model,
    NewJob,
    Outcome,
    RoundResult,
    Session,
    State,
)


def dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def pairs(flat: Sequence[str]) -> dict[str, str]:
    """A hash as Lua returns it: field, value, field, value ..."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _rows(texts: Sequence[str]) -> list[list[Any]]:
    # one call of the parser for thousands of small arrays
    rows: list[list[Any]] = json.loads(f"[{','.join(texts)}]")
    return rows


def client(name: str, text: str) -> ClientRecord:
    return _client(name, json.loads(text))


def _client(name: str, row: Sequence[Any]) -> ClientRecord:
    state, task_id, update_id, num_examples, reason, detail, at_ms = row
    return ClientRecord(
        name, ClientState(state), task_id, update_id, int(num_examples), reason, detail, int(at_ms)
    )


def new_job(job: NewJob) -> dict[str, str]:
    return {
        "job_id": job.job_id,
        "session_id": job.session_id,
        "kind": job.kind,
        "round_id": job.round_id,
        "parent_model_id": job.parent_model_id,
        "config": dumps(dict(job.config)),
    }


def job(dump: Sequence[Sequence[str]]) -> Job | None:
    """From what `job_dump` of the scripts returns; None for a job that does not exist."""
    fields, clients, others, unrecorded = dump
    if not fields:
        return None
    f = pairs(fields)
    records = zip(clients[::2], _rows(clients[1::2]), strict=True)
    return Job(
        job_id=f["job_id"],
        session_id=f["session_id"],
        kind=Kind(f["kind"]),
        state=State(f["state"]),
        reason=f["reason"],
        round_id=f["round_id"],
        model_id=f["model_id"],
        parent_model_id=f["parent_model_id"],
        config=json.loads(f["config"]),
        phase=f["phase"],
        version=int(f["version"]),
        created_ms=int(f["created_ms"]),
        started_ms=int(f.get("started_ms", 0)),
        ended_ms=int(f.get("ended_ms", 0)),
        deadline_ms=int(f.get("deadline_ms", 0)),
        closed="closed" in f,
        closed_why=f.get("closed", ""),
        clients={name: _client(name, row) for name, row in records},
        others=tuple(Outcome(client, reason, detail) for _, client, reason, detail in sorted(_rows(others))),
        unrecorded=tuple(sorted(unrecorded)),
        metrics=json.loads(f["metrics"]) if "metrics" in f else None,
        timings=json.loads(f.get("timings", "{}")),
        owners_died=int(f.get("owners_died", 0)),
        format=f.get("format", ""),
        left_out=tuple(Outcome(*row) for row in json.loads(f.get("left_out") or "[]")),
    )


_SESSION_DOC = ("seed_model_id", "model_id", "round", "failed_in_a_row")


def session_doc(session: Session) -> str:
    """What only the owner of the session changes; the rest are fields of the hash, for the scripts."""
    doc: dict[str, Any] = {name: getattr(session, name) for name in _SESSION_DOC}
    doc["config"] = dict(session.config)
    doc["results"] = [dataclasses.asdict(result) for result in session.results]
    return dumps(doc)


def round_result(fields: dict[str, Any]) -> RoundResult:
    return RoundResult(**(fields | {"state": State(fields["state"])}))


def session(fields: Sequence[str]) -> Session | None:
    if not fields:
        return None
    f = pairs(fields)
    doc = json.loads(f["doc"])
    results = tuple(map(round_result, doc.pop("results")))
    return Session(
        session_id=f["session_id"],
        state=State(f["state"]),
        reason=f["reason"],
        current_job_id=f["current_job_id"],
        results=results,
        earlier_done=int(f.get("earlier_done", 0)),
        earlier_failed=int(f.get("earlier_failed", 0)),
        version=int(f["version"]),
        created_ms=int(f["created_ms"]),
        started_ms=int(f.get("started_ms", 0)),
        ended_ms=int(f.get("ended_ms", 0)),
        **doc,
    )


def model_entry(model: Model) -> dict[str, object]:
    doc = dataclasses.asdict(model)
    del doc["created_ms"]
    return {
        "model_id": model.model_id,
        "session_id": model.session_id,
        "created_ms": model.created_ms,
        "doc": dumps(doc),
    }


def model(dump: Sequence[Any]) -> Model | None:
    """From what `model_dump` returns. The figures of a validation replace those of the registration."""
    fields, client_metrics = dump
    if not fields:
        return None
    f = pairs(fields)
    doc = json.loads(f["doc"])
    if "metrics" in f:
        doc["metrics"] = json.loads(f["metrics"])
        doc["client_metrics"] = json.loads(client_metrics or "{}")
    return Model(**doc, created_ms=int(f["created_ms"]))
