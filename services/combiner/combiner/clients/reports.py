"""What clients tell beside their answers, on its way to Redis, and its sums for Prometheus."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, islice

from combiner.clients.outbox import Outbox
from combiner.ports import Report, ReportKind, Reports
from fedcombiner.servicekit.errors import printable

BATCH = 300
NAMES_MAX = 16  # of one message
NAME_CHARS = 64
TEXT_CHARS = 64
FRESH_S = 30.0  # clients tell every 5 s
SUMMED = ("cpu_usage", "memory_usage")
"""The telemetry of which `ClientReports` knows the mean and the highest value."""


class ClientReports(Outbox[Report]):
    """The newest telemetry of at most `limit` clients is also held here, for `mean` and `highest`."""

    def __init__(
        self, reports: Reports, *, limit: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(reports.add, batch=BATCH, limit=limit)
        self._clock = clock
        self._newest: dict[str, tuple[float, Mapping[str, float]]] = {}  # the longest unheard first

    def note(self, report: Report) -> None:
        """One without a usable value is nothing."""
        if not report.values:
            return
        if report.kind is ReportKind.TELEMETRY:
            self._hold(report)
        self._put(report.client, report, sum(map(len, chain(*report.values.items()))))

    def _hold(self, report: Report) -> None:
        told = {name: float(text) for name, text in report.values.items() if name in SUMMED}
        if not told:
            return
        before = self._newest.pop(report.client, (0.0, {}))[1]
        self._newest[report.client] = (self._clock(), {**before, **told})
        while len(self._newest) > self._limit:
            del self._newest[next(iter(self._newest))]

    def mean(self, name: str) -> float:
        """Mean of one of `SUMMED` over the clients that told it lately at this replica; NaN if none did."""
        values = self._fresh(name)
        return sum(values) / len(values) if values else math.nan

    def highest(self, name: str) -> float:
        return max(self._fresh(name), default=math.nan)

    def _fresh(self, name: str) -> list[float]:
        since = self._clock() - FRESH_S
        return [values[name] for at, values in self._newest.values() if at >= since and name in values]


def numbers(pairs: Iterable[tuple[str, float]]) -> dict[str, str]:
    """The finite ones of a message, under names that can be shown; 7 digits tell what is 32 bits wide."""
    named = islice(((_name(key), value) for key, value in pairs), NAMES_MAX)
    return {name: repr(float(f"{value:.7g}")) for name, value in named if name and math.isfinite(value)}


def texts(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    named = islice(((_name(key), value) for key, value in pairs), NAMES_MAX)
    return {name: printable(value[:TEXT_CHARS])[:TEXT_CHARS] for name, value in named if name}


def _name(key: str) -> str:
    return key if len(key) <= NAME_CHARS and key.isprintable() else ""
