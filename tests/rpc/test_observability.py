"""The page of metrics is current, and dashboards and alerts are whole and speak of metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana.make_dashboards import DIRECTORY, files
from tools.metrics_page import PAGE, page

ROOT = Path(__file__).parents[2]
RULES = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
ALERTS = [alert for group in RULES["groups"] for alert in group["rules"]]
UNITS = {"s", "bytes", "Bps", "ops", "percentunit", "short"}
# Metrics of others, which the e2e suite asks the running Prometheus for.
OTHERS = re.compile(r"^(up$|minio_|haproxy_)")
DASHBOARDS = [json.loads(path.read_text()) for path in sorted(DIRECTORY.glob("*.json"))]


def expressions() -> list[str]:
    drawn = [
        target["expr"] for board in DASHBOARDS for panel in board["panels"] for target in panel["targets"]
    ]
    return [*drawn, *(alert["expr"] for alert in ALERTS)]


async def test_the_page_of_metrics_is_current() -> None:
    assert PAGE.read_text() == await page(), "run `make metrics` and commit docs/metrics.md"


def test_the_dashboards_are_what_the_code_says() -> None:
    written = dict(files())
    assert set(written) == set(DIRECTORY.glob("*.json"))
    for path, text in written.items():
        assert path.read_text() == text, "run `make metrics` and commit deploy/grafana/dashboards"


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board["uid"])
def test_a_dashboard_has_units_a_choice_of_source_and_a_place_for_each_panel(board: dict[str, Any]) -> None:
    [variable] = board["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    for panel in board["panels"]:
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert {t["datasource"]["uid"] for t in panel["targets"]} == {"${datasource}"}, panel["title"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["title"] for panel in board["panels"]}) == len(places)


def test_dashboards_and_alerts_speak_of_metrics_that_exist() -> None:
    known = set(re.findall(r"^\| `(\w+)`", PAGE.read_text(), re.MULTILINE))
    assert len(expressions()) > 40
    for expression in expressions():
        bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|by \([^)]*\)|\"[^\"]*\"", "", expression)
        for word in re.findall(r"[a-z]\w*_\w+|\bup\b", bare):
            name = re.sub(r"_(bucket|sum|count)$", "", word)
            if name not in ("histogram_quantile", "min_over_time") and not OTHERS.match(name):
                assert name in known, f"{name} in: {expression}"


def test_every_alert_has_a_chapter_in_the_runbook_and_a_test() -> None:
    names = [alert["alert"] for alert in ALERTS]
    assert names == re.findall(r"^## (\w+)", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE)
    links = [alert["annotations"]["runbook_url"] for alert in ALERTS]
    assert links == [f"docs/runbook.md#{name.lower()}" for name in names]
    tested = re.findall(r"alertname: (\w+)", (ROOT / "deploy/prometheus/alerts_test.yml").read_text())
    assert set(tested) == set(names)
