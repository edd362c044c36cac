"""What Prometheus knows of a stack that has worked: every target, every query of every dashboard and alert.

Named to run after the other scenarios: a query that is empty then asks for what is not there.
"""

from __future__ import annotations

import asyncio
import json
import re

import pytest
import yaml

from fedcombiner.client import OperatorClient
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.e2e.fleets import ended, fleet, seed, start
from tests.e2e.stacks import ROOT, Compose

pytestmark = pytest.mark.needs("services")

# Two scrapes, without which nothing has a rate.
SCRAPED_S = 30.0
SERIES = re.compile(r"\b(?!min_over_time)(?:up\b|[a-z]+_\w+)(?:\{[^}]*\})?")


def drawn() -> list[str]:
    boards = [json.loads(path.read_text()) for path in (ROOT / "deploy/grafana/dashboards").glob("*.json")]
    return [target["expr"] for board in boards for panel in board["panels"] for target in panel["targets"]]


async def until_all_found(containers: Compose, expressions: list[str]) -> list[str]:
    """The expressions that stay empty for `SCRAPED_S`."""
    deadline = asyncio.get_running_loop().time() + SCRAPED_S
    while True:
        empty = [expression for expression in expressions if not await containers.query(expression)]
        if not empty or asyncio.get_running_loop().time() > deadline:
            return empty
        await asyncio.sleep(1)  # Prometheus tells nobody that it has scraped


async def test_every_target_is_up(containers: Compose) -> None:
    assert await until_all_found(containers, ["count(up) == 8 and sum(up) == 8"]) == []


async def test_every_query_of_a_dashboard_finds_something(
    containers: Compose, operator: OperatorClient
) -> None:
    async with fleet(containers, 3) as clients:
        await clients.wait_connected(20)
        session = await start(operator, await seed(operator, 3), 3, rounds=3)
        assert (await ended(operator, session)).state == pb.SUCCEEDED
        expressions = drawn()
        # This one is empty for as long as no transfer has failed.
        expected = [expression for expression in expressions if 'code!="OK"' not in expression]
        assert len(expected) == len(expressions) - 1
        assert await until_all_found(containers, expected) == []


async def test_every_alert_is_loaded_and_what_it_watches_is_there(containers: Compose) -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
    alerts = {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}
    assert set(alerts) == {rule["name"] for rule in await containers.rules()}
    # An alert that does not fire is empty, so ask for each series that it looks at.
    watched = [found for expression in alerts.values() for found in SERIES.findall(expression)]
    assert len(watched) >= len(alerts)
    assert await until_all_found(containers, watched) == []
