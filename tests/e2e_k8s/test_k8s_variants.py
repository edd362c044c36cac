"""Other ways to run the release: behind TLS, watched by a Prometheus, on back ends of one's own."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from fedcombiner.client import OperatorClient
from fedcombiner.client.errors import ServerUnreachable, TlsFailed
from fedcombiner.client.trust import Trust
from tests.e2e.stacks import ROOT
from tests.e2e_k8s.cluster import CHART, Release, run, sets, wait_until
from tests.e2e_k8s.conftest import Tags
from tests.e2e_k8s.test_k8s_release import tag

pytestmark = pytest.mark.timeout(900)

PODS = {"combiner": 2, "modelstore": 2, "discovery": 1, "gateway": 2, "minio": 1}
# What an alert is about, in words of this release alone.
WATCHED = (
    "up",
    "backend_up",
    "process_start_time_seconds",
    "fedcombiner_works",
    "fedcombiner_active_clients",
    "fedcombiner_streams",
    "fedcombiner_redis_memory_bytes",
    "minio_cluster_capacity_usable_free_bytes",
)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates") / "certs"
    words = ("certs", "init", str(directory), "--host", "fc-gateway.fc-e2e.svc.cluster.local")
    run(sys.executable, "-c", "from fedcombiner.cli.main import main; main()", *words)
    return directory


@pytest.fixture(scope="module")
def behind_tls(release: Release, certificates: Path, tags: Tags) -> Iterator[Release]:
    files = [f"--from-file={name}={certificates / name}" for name in ("tls.crt", "tls.key", "ca.crt")]
    release.kubectl("create", "secret", "generic", "own-tls", "--type=kubernetes.io/tls", *files)
    release.install("tls.existingSecret=own-tls", "tls.authorityInSecret=true", *tag(tags.this))
    yield release
    release.helm("uninstall", release.name, "--wait", "--timeout", "3m")
    release.kubectl("delete", "secret", "own-tls")


async def test_behind_tls_a_round_is_trained_and_nobody_is_served_in_plaintext(
    behind_tls: Release, certificates: Path
) -> None:
    behind_tls.helm("test", behind_tls.name, "--timeout", "3m")
    token = behind_tls.secret("operator-token", "operator-token")
    with behind_tls.forwarded("gateway", 12080) as port:
        trust = Trust.in_file(certificates / "ca.crt")
        async with OperatorClient(f"127.0.0.1:{port}", trust=trust, token=token, patience=30) as operator:
            assert await operator.list_models()
        async with OperatorClient(f"127.0.0.1:{port}", token=token) as plain:
            with pytest.raises((TlsFailed, ServerUnreachable)):
                await plain.list_models()


def test_a_prometheus_finds_every_pod_by_the_monitor_and_the_alerts_see_this_release(
    behind_tls: Release,
) -> None:
    options = ("metrics.serviceMonitor.enabled=true", "metrics.prometheusRule.enabled=true")
    files = ("-s", "templates/metrics.yaml", "-s", "templates/alerts.yaml")
    text = behind_tls.helm("template", behind_tls.name, CHART, *files, *sets(options))
    made = {one["kind"]: one for one in yaml.safe_load_all(text)}
    monitor, rules = made["ServiceMonitor"]["spec"], made["PrometheusRule"]["spec"]
    for one in prometheus(behind_tls, monitor, rules):
        behind_tls.kubectl("apply", "-f", "-", stdin=json.dumps(one))

    def ask(path: str) -> Any:
        target = f"/api/v1/namespaces/{behind_tls.namespace}/pods/prometheus:9090/proxy/api/v1/{path}"
        return json.loads(run("kubectl", "get", "--raw", target))["data"]

    def query(expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = ask(f"query?query={quote(expression)}")["result"]
        return found

    def up() -> dict[str, int]:
        return {one["metric"]["job"]: int(one["value"][1]) for one in query("count by (job) (up == 1)")}

    try:
        behind_tls.kubectl("wait", "--for=condition=Ready", "pod/prometheus", "--timeout=120s")
        wait_until(f"{PODS} to be scraped", lambda: up() == PODS)
        mine = f'namespace="{behind_tls.namespace}",release="{behind_tls.name}"'
        for metric in WATCHED:
            assert query(f"{metric}{{{mine}}}"), metric
        # An rpc's own label is not that of the target.
        assert query('fedcombiner_rpc_started_total{service=~".*ModelService"}')

        def looked_at() -> bool:
            loaded = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
            return len(loaded) > 5 and all(rule["health"] == "ok" for rule in loaded)

        wait_until("all alerts to be looked at", looked_at)
        assert not [alert for alert in ask("alerts")["alerts"] if alert["state"] == "firing"]
    finally:
        behind_tls.kubectl("delete", "pod,configmap", "--selector=test=prometheus", "--wait")


def prometheus(release: Release, monitor: dict[str, Any], rules: dict[str, Any]) -> list[dict[str, Any]]:
    """A Prometheus that scrapes what the operator would tell it to."""
    image = re.search(r"^PROMETHEUS_IMAGE=(.*)$", (ROOT / "deploy/.env").read_text(), re.MULTILINE)
    assert image
    # What the operator writes for each endpoint, before the rules of the monitor itself.
    target = {"namespace": "namespace", "service": "service_name", "pod": "pod_name"}
    its_own = [
        {"source_labels": [f"__meta_kubernetes_{meta}"], "target_label": label}
        for label, meta in target.items()
    ]
    scraped = [
        {
            "job_name": f"{release.name}/{number}",
            "scrape_interval": "2s",
            "metrics_path": endpoint.get("path", "/metrics"),
            "static_configs": found(release, monitor["selector"]["matchLabels"], endpoint["port"]),
            "relabel_configs": [
                *its_own,
                *({snake(key): value for key, value in rule.items()} for rule in endpoint["relabelings"]),
            ],
        }
        for number, endpoint in enumerate(monitor["endpoints"])
    ]
    config = {
        "global": {"evaluation_interval": "2s"},
        "rule_files": ["/etc/prometheus/rules.yml"],
        "scrape_configs": scraped,
    }
    about = {"name": "prometheus", "labels": {"test": "prometheus"}}
    container = {
        "name": "prometheus",
        "image": image[1],
        "args": ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"],
        "ports": [{"containerPort": 9090}],
        "readinessProbe": {"httpGet": {"path": "/-/ready", "port": 9090}, "periodSeconds": 2},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/prometheus"},
            {"name": "data", "mountPath": "/prometheus"},
        ],
    }
    spec = {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65534,
            "fsGroup": 65534,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "config", "configMap": {"name": "prometheus"}},
            {"name": "data", "emptyDir": {}},
        ],
    }
    files = {"prometheus.yml": json.dumps(config), "rules.yml": json.dumps(rules)}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": files},
        {"apiVersion": "v1", "kind": "Pod", "metadata": about, "spec": spec},
    ]


def found(release: Release, service: dict[str, str], port: str) -> list[dict[str, Any]]:
    """Targets with the labels that Kubernetes' discovery gives them; not every build of Prometheus has it."""
    selector = ",".join(f"{key}={value}" for key, value in service.items())
    parts = {pod["metadata"]["name"]: pod["metadata"]["labels"] for pod in release.pods()}
    return [
        {
            "targets": [f"{address}:{one['port']}"],
            "labels": {
                "__meta_kubernetes_namespace": release.namespace,
                "__meta_kubernetes_service_name": piece["metadata"]["labels"]["kubernetes.io/service-name"],
                "__meta_kubernetes_pod_name": endpoint["targetRef"]["name"],
                **{
                    f"__meta_kubernetes_pod_label_{re.sub('[^a-zA-Z0-9]', '_', label)}": value
                    for label, value in parts[endpoint["targetRef"]["name"]].items()
                },
            },
        }
        for piece in release.get("endpointslices", "--selector", selector)
        for one in piece["ports"]
        if one["name"] == port
        for endpoint in piece["endpoints"]
        for address in endpoint["addresses"]
    ]


def snake(name: str) -> str:
    return re.sub("([A-Z])", lambda letter: f"_{letter[1].lower()}", name)


def test_back_ends_of_ones_own(release: Release, tags: Tags) -> None:
    # Those of another release, of which nothing else is there.
    own = Release(f"{release.namespace}-own")
    own.make_namespace()
    parts = ("secrets", "service-accounts", "redis", "minio")
    files = [word for part in parts for word in ("-s", f"templates/{part}.yaml")]
    try:
        own.kubectl("apply", "-f", "-", stdin=own.helm("template", "back", CHART, *files))
        own.kubectl("delete", "serviceaccount", "back-test")
        own.install(
            "redis.embedded=false",
            "redis.host=back-redis",
            "redis.existingSecret=back-redis",
            "minio.embedded=false",
            "minio.url=http://back-minio:9000",
            "minio.bucket=of-ones-own",
            "minio.users.combiner=own-combiner",
            "minio.existingSecret=back-minio",
            "discovery.enabled=false",
            *tag(tags.this),
        )
        assert not own.get("statefulsets", "--selector", f"app.kubernetes.io/instance={own.name}")
        own.helm("test", own.name, "--timeout", "3m")
        assert own.restarts() == {}
        own.helm("uninstall", own.name, "--wait", "--timeout", "3m")
    finally:
        own.save_logs()
        run("kubectl", "delete", "namespace", own.namespace, "--wait")
