"""Prometheus Operator's kinds as far as the chart uses them: a schema for where its CRDs are not."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Duration = Annotated[str, Field(pattern=r"^([0-9]+(ms|s|m|h|d|w|y))+$")]
LabelName = Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")]


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Metadata(Closed):
    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    labels: dict[str, str]


class Relabeling(Closed):
    action: Literal["replace", "labeldrop"] = "replace"
    sourceLabels: list[LabelName] = []
    targetLabel: str = ""
    replacement: str = ""
    regex: str = ""


class Endpoint(Closed):
    port: str
    path: str = "/metrics"
    interval: Duration
    relabelings: list[Relabeling]


class Selector(Closed):
    matchLabels: dict[str, str]


class ServiceMonitorSpec(Closed):
    selector: Selector
    endpoints: list[Endpoint] = Field(min_length=1)


class ServiceMonitor(Closed):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["ServiceMonitor"]
    metadata: Metadata
    spec: ServiceMonitorSpec


class Rule(Closed):
    alert: LabelName
    expr: str = Field(min_length=1)
    for_: Duration | None = Field(None, alias="for")
    labels: dict[LabelName, str]
    annotations: dict[LabelName, str]


class Group(Closed):
    name: str
    rules: list[Rule] = Field(min_length=1)


class RuleSpec(Closed):
    groups: list[Group] = Field(min_length=1)


class PrometheusRule(Closed):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PrometheusRule"]
    metadata: Metadata
    spec: RuleSpec


KINDS: dict[str, type[Closed]] = {"ServiceMonitor": ServiceMonitor, "PrometheusRule": PrometheusRule}


def check(made: dict[str, Any]) -> None:
    """Raises ValidationError."""
    KINDS[made["kind"]].model_validate(made)
