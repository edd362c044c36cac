"""Rendering the chart as `helm install` would, without a cluster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any, Final

import pytest
import yaml

from tools.chart_page import CHART

RELEASE: Final = "fc"
NAMESPACE: Final = "learning"
Rendered = Mapping[str, dict[str, Any]]
"""By `Kind/part`, the part being what the chart calls it, such as `Deployment/combiner`."""


class Refused(Exception):
    """What helm said."""


def helm() -> str:
    """The binary. Skips the test where there is none, unless REQUIRE_HELM says that this is a failure."""
    binary = shutil.which("helm")
    if binary is None:
        if os.environ.get("REQUIRE_HELM"):
            pytest.fail("REQUIRE_HELM is set, and there is no helm on the PATH")
        pytest.skip("there is no helm on the PATH")
    return binary


def template(values: Mapping[str, object] | None = None) -> str:
    """What `helm template` prints; `values` have dots in their names. Raises Refused."""
    words = [
        word
        for name, value in (values or {}).items()
        for word in ("--set-json", f"{name}={json.dumps(value)}")
    ]
    command = [helm(), "template", RELEASE, str(CHART), "--namespace", NAMESPACE, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


def render(values: Mapping[str, object] | None = None) -> Rendered:
    objects = [one for one in yaml.safe_load_all(template(values)) if one]
    found = {f"{one['kind']}/{part(one)}": one for one in objects}
    assert len(found) == len(objects), "two objects have the same kind and name"
    return found


def part(made: Mapping[str, Any]) -> str:
    name: str = made["metadata"]["name"]
    assert name.startswith(f"{RELEASE}-"), name
    # The name of the Job has a hash of what it is made from.
    return name.removeprefix(f"{RELEASE}-").partition("-setup-")[0]


def pod(made: Mapping[str, Any]) -> dict[str, Any]:
    """The pod of a workload, or the pod itself: metadata and spec."""
    found: dict[str, Any] = dict(made) if made["kind"] == "Pod" else made["spec"]["template"]
    return found


def container(made: Mapping[str, Any]) -> dict[str, Any]:
    [only] = pod(made)["spec"]["containers"]
    found: dict[str, Any] = only
    return found


def environment(made: Mapping[str, Any]) -> dict[str, str]:
    """Values by name; of one that comes from a Secret `SECRET:KEY`."""
    return {one["name"]: _value(one) for one in container(made)["env"]}


def _value(one: Mapping[str, Any]) -> str:
    if "value" in one:
        return str(one["value"])
    ref = one["valueFrom"]["secretKeyRef"]
    return f"{ref['name']}:{ref['key']}"
