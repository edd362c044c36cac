"""The bounds of the shared state. Every replica of a stack is given the same ones."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from combiner.domain.retention import PURGE_AT, REFUSE_AT

SCHEMA = 1

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds what is told in docs/state.md. Times in milliseconds by the clock of Redis."""

    max_running_jobs: int = 1
    max_running_sessions: int = 1
    max_queued: int = 10_000  # jobs, and sessions: one more is refused with QueueFull
    max_deliveries: int = 3
    client_window_ms: int = 10_000
    keep_ms: int = 30 * _DAY_MS
    keep_jobs: int = 10_000
    keep_sessions: int = 1_000
    # Where Redis has no `maxmemory`: clients, and each 256 bytes of answers, in ended jobs of any age.
    keep_records: int = 2_000_000
    # Parts of `maxmemory`: ended work goes at the first, nothing new begins at the second.
    purge_at: float = PURGE_AT
    refuse_at: float = REFUSE_AT
    answers_share: float = 0.3  # of validations and inferences that run
    max_answer_bytes: int = 1024 * _MIB  # ... where Redis has no limit
    log_share: float = 0.1
    said_share: float = 0.05
    roster_share: float = 0.3
    told_share: float = 0.05
    assumed_memory: int = 512 * _MIB  # what the parts are of where Redis has no limit
    roster_ms: int = 7 * _DAY_MS
    max_roster: int = 100_000
    recall_ms: int = 60_000  # for which streams that found no room are not registered again
    max_named: int = 64  # clients known by one name: each answer by that name looks at all of them
    client_bytes: int = 1_536  # of one client in the roster, with its last 16 tasks
    log_length: int = 20_000
    max_statuses: int = 10_000
    max_told: int = 16  # values of each kind that a client tells, and as many in each of its jobs
    max_raw: int = 100
    raw_ms: int = _HOUR_MS
    max_others: int = 1_000
    condemned_ms: int = _HOUR_MS  # longer than the removal of an object takes

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self) | {"schema": SCHEMA}, separators=(",", ":"))
