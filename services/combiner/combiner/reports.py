"""What clients tell beside their answers, on its way to Redis, and its sums for Prometheus."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice

import structlog

from combiner.ports import Report, ReportKind, Reports, StateUnavailable
from fedcombiner.servicekit.errors import printable

log = structlog.get_logger()

FLUSH_S = 0.5
BATCH = 300
NAMES_MAX = 32  # of one message
NAME_CHARS = 64
TEXT_CHARS = 256
FRESH_S = 30.0  # clients tell every 5 s


class ClientReports:
    """Waits at most `limit` reports; when it is full the oldest is dropped and counted.

    The newest telemetry of at most `limit` clients is also held here, for `mean` and `highest`.
    """

    def __init__(
        self, reports: Reports, *, limit: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._reports = reports
        self._waiting: deque[Report] = deque(maxlen=limit)
        self._something = asyncio.Event()
        self._limit = limit
        self._clock = clock
        self._newest: dict[str, tuple[float, Mapping[str, float]]] = {}  # the longest unheard first
        self.dropped = 0

    def note(self, report: Report) -> None:
        """One without a usable value is nothing."""
        if not report.values:
            return
        if report.kind is ReportKind.TELEMETRY:
            self._hold(report)
        if len(self._waiting) == self._waiting.maxlen:
            self.dropped += 1
        self._waiting.append(report)
        self._something.set()

    def _hold(self, report: Report) -> None:
        before = self._newest.pop(report.client, (0.0, {}))[1]
        values = {name: float(text) for name, text in report.values.items()}
        known = {**before, **values} if len(before) < NAMES_MAX else values
        self._newest[report.client] = (self._clock(), known)
        while len(self._newest) > self._limit:
            del self._newest[next(iter(self._newest))]

    def mean(self, name: str) -> float:
        """Over the clients that told it lately at this replica; NaN if none did."""
        values = self._fresh(name)
        return sum(values) / len(values) if values else math.nan

    def highest(self, name: str) -> float:
        return max(self._fresh(name), default=math.nan)

    def _fresh(self, name: str) -> list[float]:
        since = self._clock() - FRESH_S
        return [values[name] for at, values in self._newest.values() if at >= since and name in values]

    async def run(self) -> None:
        while True:
            await self._something.wait()
            await asyncio.sleep(FLUSH_S)
            self._something.clear()
            await self._flush()

    async def _flush(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            try:
                await self._reports.add(batch)
            except StateUnavailable:
                room = (self._waiting.maxlen or 0) - len(self._waiting)
                self.dropped += max(0, len(batch) - room)
                self._waiting.extendleft(reversed(batch[-room:] if room else []))
                self._something.set()
                return


def numbers(pairs: Iterable[tuple[str, float]]) -> dict[str, str]:
    """The finite ones of a message, under names that can be shown; 7 digits tell what is 32 bits wide."""
    named = islice(((_name(key), value) for key, value in pairs), NAMES_MAX)
    return {name: repr(float(f"{value:.7g}")) for name, value in named if name and math.isfinite(value)}


def texts(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    named = islice(((_name(key), value) for key, value in pairs), NAMES_MAX)
    return {name: printable(value[:TEXT_CHARS]) for name, value in named if name}


def _name(key: str) -> str:
    return key if len(key) <= NAME_CHARS and key.isprintable() else ""
