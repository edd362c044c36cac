"""What clients tell, between the wire and Redis: bounded, and summed up for Prometheus."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from combiner.clients.reports import FRESH_S, NAMES_MAX, ClientReports, numbers, texts
from combiner.ports import Report, ReportKind, StateUnavailable


class Kept:
    """`ports.Reports` that is away as often as it is told."""

    def __init__(self, away: int = 0) -> None:
        self.away = away
        self.clients: list[str] = []
        self.came = asyncio.Event()

    async def add(self, reports: Sequence[Report]) -> None:
        if self.away:
            self.away -= 1
            raise StateUnavailable("away")
        self.clients += [report.client for report in reports]
        self.came.set()


def cpu(client: str, value: float) -> Report:
    return Report(client, ReportKind.TELEMETRY, numbers([("cpu_usage", value)]))


def test_the_oldest_makes_room_and_is_counted() -> None:
    reports = ClientReports(Kept(), limit=2)
    for client in ("a", "b", "c"):
        reports.note(cpu(client, 1.0))
    assert reports.dropped == 1
    assert reports.mean("cpu_usage") == 1.0


async def test_what_came_while_redis_was_away_comes_later_in_order() -> None:
    kept = Kept(away=1)
    reports = ClientReports(kept)
    for client in ("a", "b"):
        reports.note(cpu(client, 1.0))
    running = asyncio.create_task(reports.run())
    try:
        await asyncio.wait_for(kept.came.wait(), 20)
    finally:
        running.cancel()
        await asyncio.wait([running])
    assert (kept.clients, reports.dropped) == (["a", "b"], 0)


def test_mean_and_highest_are_of_clients_heard_lately() -> None:
    now = 0.0
    reports = ClientReports(Kept(), clock=lambda: now)
    assert math.isnan(reports.mean("cpu_usage"))
    reports.note(cpu("gone", 100.0))
    now = FRESH_S + 1
    for client, value in (("a", 10.0), ("a", 20.0), ("b", 40.0)):
        reports.note(cpu(client, value))
    assert (reports.mean("cpu_usage"), reports.highest("cpu_usage")) == (30.0, 40.0)
    assert math.isnan(reports.highest("memory_usage"))


def test_a_report_without_a_usable_value_is_none() -> None:
    reports = ClientReports(Kept())
    reports.note(Report("a", ReportKind.METRIC, numbers([("x", math.nan), ("", 1.0), ("\n", 2.0)])))
    assert len(reports._waiting) == 0


def test_numbers_and_texts_are_few_finite_and_printable() -> None:
    assert numbers([("a", 0.1), ("b", math.inf)]) == {"a": "0.1"}
    assert len(numbers((f"m{i}", 1.0) for i in range(1000))) == NAMES_MAX
    assert texts([("a", "x\x1by"), ("b" * 65, "long")]) == {"a": "x\\x1by"}
