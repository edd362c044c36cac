"""The chart's files agree with each other and with what they are made from. Needs no helm."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedcombiner.version import __version__
from tools.chart_page import CHART, OF_THE_CHART, PAGE, SCHEMA, SERVICES, page, schema

DEPLOY = CHART.parent
ABOUT = yaml.safe_load((CHART / "Chart.yaml").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
ENV = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / ".env").read_text(), re.MULTILINE))


def test_schema_and_page_are_current() -> None:
    assert SCHEMA.read_text() == schema(), "run `make chart` and commit deploy/helm"
    assert PAGE.read_text() == page(), "run `make chart` and commit deploy/helm"


def test_one_version_and_the_images_that_make_images_builds() -> None:
    assert ABOUT["version"] == ABOUT["appVersion"] == __version__ == ENV["IMAGE_TAG"]
    assert VALUES["image"]["prefix"] == ENV["IMAGE_PREFIX"]
    images = {key: VALUES[key]["image"] for key in ("gateway", "redis", "minio")}
    assert images == {
        "gateway": ENV["HAPROXY_IMAGE"],
        "redis": ENV["REDIS_IMAGE"],
        "minio": ENV["MINIO_IMAGE"],
    }


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("haproxy.cfg", "haproxy/haproxy.cfg"),
        ("alerts.yml", "prometheus/alerts.yml"),
        ("dashboards", "grafana/dashboards"),
    ],
)
def test_what_compose_has_is_shared_and_not_copied(name: str, truth: str) -> None:
    # Helm follows links, and a packed chart has what they lead to.
    assert (CHART / "files" / name).is_symlink()
    assert (CHART / "files" / name).resolve() == (DEPLOY / truth).resolve()


def test_every_alert_has_a_row_in_the_page_on_kubernetes() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
    page = (CHART.parents[1] / "docs" / "kubernetes.md").read_text()
    table = page[page.index("| alert | ") :]
    assert [rule["alert"] for rule in rules] == re.findall(r"^\| ([A-Z]\w+) \|", table, re.MULTILINE)


def test_redis_is_as_safe_and_as_closed_as_the_one_of_compose() -> None:
    compose = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())["services"]["redis"]["command"]
    chart = (CHART / "templates" / "redis.yaml").read_text()
    words = [word for word in compose if not word.startswith((">", "$")) and word != "tokens"]
    script = chart[chart.index("exec redis-server") : chart.index("env:")].replace('""', "").replace('"', "")
    for word in filter(None, words):
        assert f" {word}" in script, word


def test_every_object_of_the_schema_is_closed_and_every_value_has_a_description() -> None:
    for name, one in groups(json.loads(SCHEMA.read_text())):
        assert one["additionalProperties"] is False, name
        for key, value in one["properties"].items():
            assert value.get("description"), f"{name}.{key}"


def test_a_value_may_not_be_missing_unless_it_may_be_null() -> None:
    whole = json.loads(SCHEMA.read_text())
    for name, one in groups({key: value for key, value in whole.items() if key != "$defs"}):
        optional = {key for key in one["properties"] if key not in one["required"]} - {"global"}
        assert all("null" in one["properties"][key]["type"] for key in optional), name


def groups(schema: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every object with properties in a JSON schema, but those that are a part of Kubernetes."""
    if isinstance(schema.get("properties"), dict) and not name.startswith(("$defs.resources", "$defs.peers")):
        yield name, schema
    for key, value in schema.items():
        if isinstance(value, dict) and key not in ("resources", "peers"):
            yield from groups(value, f"{name}.{key}".lstrip("."))


@pytest.mark.parametrize("service", SERVICES)
def test_what_the_chart_says_itself_is_a_setting_of_some_service(service: str) -> None:
    known = {name for settings in SERVICES.values() for name in settings.model_fields}
    assert known >= OF_THE_CHART
    assert Path(CHART / "templates" / f"{service}.yaml").is_file()
