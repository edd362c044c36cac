"""The chart, installed for real. Each test goes on with the release that the one before it left."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from fedcombiner.client import OperatorClient
from fedcombiner.wire.pb.combiner.v1 import combiner_pb2 as pb
from tests.chart.chart_kit import template
from tests.chart.test_chart_rendering import VARIANTS
from tests.e2e.fleets import ended, fleet, seed, start
from tests.e2e.stacks import ROOT
from tests.e2e_k8s.cluster import CHART, READY_S, Release, run, wait_until
from tests.e2e_k8s.conftest import Reached, Tags

pytestmark = pytest.mark.timeout(900)

# Kinds that only a cluster with Prometheus Operator knows; tests/chart has a schema for them.
OF_THE_OPERATOR = "monitoring.coreos.com/"
# What every namespace has.
EVERYWHERE = {"configmap/kube-root-ca.crt", "serviceaccount/default"}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_api_server_takes_every_object_and_warns_of_none(release: Release, name: str) -> None:
    objects = [
        text
        for text in template(VARIANTS[name]).split("\n---\n")
        if f"apiVersion: {OF_THE_OPERATOR}" not in text
    ]
    command = [
        "kubectl",
        "-n",
        release.namespace,
        "apply",
        "--dry-run=server",
        "--validate=strict",
        "-f",
        "-",
    ]
    # A pod is looked at with its account, which has to be there.
    release.kubectl("create", "serviceaccount", f"{release.name}-test", "--save-config")
    done = subprocess.run(command, input="\n---\n".join(objects), capture_output=True, text=True)
    release.kubectl("delete", "serviceaccount", f"{release.name}-test")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr


def test_a_wrong_value_fails_before_anything_is_installed(release: Release) -> None:
    for value in ("combiner.replicas=none", "redis.host=r", "combiner.settings.MAX_CLIENTS=0"):
        words = ["helm", "install", release.name, CHART, "-n", release.namespace, "--set", value]
        assert subprocess.run(words, capture_output=True).returncode != 0, value
    assert left_in(release) == set()


def test_without_values_all_is_ready_within_three_minutes(release: Release, tags: Tags) -> None:
    began = time.monotonic()
    release.install(*tag(tags.this))
    took = time.monotonic() - began
    sys.stdout.write(f"\nhelm install --wait: {took:.0f} s\n")
    assert took < READY_S
    assert release.restarts() == {}


def test_helm_test_trains_a_round_and_leaves_no_pod(release: Release) -> None:
    release.helm("test", release.name, "--timeout", "3m")
    assert not release.pods("test")


def test_every_pod_can_be_scraped(release: Release) -> None:
    scraped = set()
    for pod in release.pods():
        about = pod["metadata"]["annotations"]
        part = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        if "prometheus.io/port" not in about:
            continue
        target = f"{pod['metadata']['name']}:{about['prometheus.io/port']}"
        path = about.get("prometheus.io/path", "/metrics")
        page = run(
            "kubectl", "get", "--raw", f"/api/v1/namespaces/{release.namespace}/pods/{target}/proxy{path}"
        )
        assert len(list(text_string_to_metric_families(page))) > 10, target
        scraped.add(part)
    assert scraped == {"combiner", "modelstore", "discovery", "gateway", "minio"}


def test_passwords_and_token_survive_an_upgrade(release: Release, gateway_port: int) -> None:
    def secrets() -> dict[str, str]:
        return {
            one["metadata"]["name"]: str(one["data"])
            for one in release.get("secrets")
            if "fc-" in one["metadata"]["name"]
        }

    before = secrets()
    jobs = {job["metadata"]["name"] for job in release.get("jobs")}
    # What discovery tells clients is how this machine reaches the gateway; the suite asks it.
    release.upgrade(f"advertise=127.0.0.1:{gateway_port}")
    assert secrets() == before
    assert {job["metadata"]["name"] for job in release.get("jobs")} == jobs


def test_the_end_to_end_suite(reached: Reached) -> None:
    known = {"COMBINER_TOKEN": reached.token, "COMBINER_DISCOVERY": reached.discovery}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/e2e",
        f"--stack={reached.address}",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | known, capture_output=True, text=True)
    sys.stdout.write(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-8000:]
    assert " passed" in done.stdout


def test_a_second_release_in_another_namespace_works_beside_it(release: Release, tags: Tags) -> None:
    other = Release(f"{release.namespace}-second")
    other.make_namespace()
    try:
        other.install(*tag(tags.this))
        assert other.secret("operator-token", "operator-token") != release.secret(
            "operator-token", "operator-token"
        )
        for one in (other, release):
            one.helm("test", one.name, "--timeout", "3m")
        other.helm("uninstall", other.name, "--wait")
    finally:
        other.save_logs()
        run("kubectl", "delete", "namespace", other.namespace, "--wait")


async def test_uninstall_leaves_volumes_alone_and_an_install_finds_all_again(
    release: Release, gateway_port: int, tags: Tags
) -> None:
    with release.forwarded("gateway", 12080, gateway_port):
        token = release.secret("operator-token", "operator-token")
        async with OperatorClient(f"127.0.0.1:{gateway_port}", token=token, patience=60) as operator:
            before = [(model.model_id, model.sha256) for model in await operator.list_models()]
    assert before
    release.helm("uninstall", release.name, "--wait", "--timeout", "3m")
    volumes = {f"persistentvolumeclaim/data-fc-{name}-0" for name in ("redis", "minio")}
    wait_until("nothing to be left but volumes", lambda: left_in(release) == volumes)
    release.install(*tag(tags.this))
    with release.forwarded("gateway", 12080, gateway_port):
        token = release.secret("operator-token", "operator-token")
        async with OperatorClient(f"127.0.0.1:{gateway_port}", token=token, patience=60) as operator:
            assert [(model.model_id, model.sha256) for model in await operator.list_models()] == before
            stack = Reached(release, f"127.0.0.1:{gateway_port}", "", token)
            async with fleet(stack, 2) as clients:
                await clients.wait_connected(60)
                done = await ended(operator, await start(operator, await seed(operator, 2), 2, rounds=1))
            assert done.state == pb.SUCCEEDED, done.reason
    release.helm("uninstall", release.name, "--wait", "--timeout", "3m")
    wait_until("nothing to be left but volumes", lambda: left_in(release) == volumes)


def left_in(release: Release) -> set[str]:
    """Every object in the namespace that is not in each."""
    kinds = run("kubectl", "api-resources", "--verbs=list", "--namespaced", "-o", "name").split()
    kinds = [kind for kind in kinds if not kind.startswith("events")]
    found = release.kubectl("get", ",".join(kinds), "--ignore-not-found", "-o", "name").split()
    return set(found) - EVERYWHERE


def tag(name: str) -> list[str]:
    """The value, if it is not what the chart says itself."""
    own = yaml.safe_load((ROOT / "deploy" / "helm" / "Chart.yaml").read_text())["appVersion"]
    return [f"image.tag={name}"] if name not in ("", own) else []
