"""The bounds of the shared state. Every replica of a stack is given the same ones."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

SCHEMA = 1

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS


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
    keep_records: int = 2_000_000  # of clients, and each 256 bytes of answers, in ended jobs of any age
    roster_ms: int = 7 * _DAY_MS
    max_roster: int = 100_000
    log_length: int = 20_000
    max_statuses: int = 10_000
    max_told: int = 64  # values of a client, and of each kind in a job
    max_raw: int = 100
    raw_ms: int = _HOUR_MS
    max_others: int = 1_000
    condemned_ms: int = _HOUR_MS  # longer than the removal of an object takes

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self) | {"schema": SCHEMA}, separators=(",", ":"))
