"""What the chart makes of its values: as they come, and of each one that is changed."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml

from tests.chart.chart_kit import (
    NAMESPACE,
    RELEASE,
    Refused,
    Rendered,
    container,
    environment,
    helm,
    pod,
    render,
    template,
)
from tests.chart.operator_kinds import KINDS, check
from tools.chart_page import CHART, OF_THE_CHART, SERVICES

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
WORKLOADS = ("Deployment", "StatefulSet", "Job", "Pod")
OURS = ("combiner", "modelstore", "discovery")
OWN_REDIS = {"redis.embedded": False, "redis.host": "redis.example.org", "redis.existingSecret": "my-redis"}
OWN_STORE = {
    "minio.embedded": False,
    "minio.url": "https://s3.example.org",
    "minio.existingSecret": "my-s3",
}
INGRESS = {"ingress.enabled": True, "ingress.host": "fl.example.org", "advertise": "fl.example.org:443"}
RESOURCES = {"requests": {"cpu": "11m", "memory": "12Mi"}, "limits": {"memory": "13Mi"}}


@pytest.fixture(scope="module")
def default() -> Rendered:
    return render()


def workloads(made: Rendered) -> list[dict[str, Any]]:
    return [one for key, one in made.items() if key.partition("/")[0] in WORKLOADS]


# Everything that is made.


def test_lint_has_nothing_to_say() -> None:
    done = subprocess.run([helm(), "lint", "--strict", str(CHART)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert not re.search(r"\[(WARNING|ERROR)\]", done.stdout), done.stdout


def test_what_a_release_consists_of(default: Rendered) -> None:
    kinds = {kind: [] for kind in sorted({key.partition("/")[0] for key in default})}
    for key in default:
        kinds[key.partition("/")[0]].append(key.partition("/")[2])
    assert {kind: sorted(names) for kind, names in kinds.items()} == {
        "ConfigMap": ["gateway"],
        "Deployment": ["combiner", "discovery", "gateway", "modelstore"],
        "Job": ["storage"],
        "NetworkPolicy": [
            *("closed", "combiner", "discovery", "gateway", "minio", "modelstore", "redis"),
            *("storage-setup", "test"),
        ],
        "Pod": ["test"],
        "PodDisruptionBudget": ["combiner", "gateway", "modelstore"],
        "Secret": ["minio", "operator-token", "redis"],
        "Service": ["combiner", "discovery", "gateway", "metrics", "minio", "modelstore", "redis"],
        "ServiceAccount": [
            *("combiner", "discovery", "gateway", "minio", "modelstore", "redis", "storage-setup", "test")
        ],
        "StatefulSet": ["minio", "redis"],
    }


EVERYTHING = {
    "metrics.serviceMonitor.enabled": True,
    "metrics.prometheusRule.enabled": True,
    "metrics.dashboards.enabled": True,
}
VARIANTS: Mapping[str, Mapping[str, object]] = {
    "default": {},
    "everything": EVERYTHING,
    "production": {**OWN_REDIS, **OWN_STORE, "minio.authoritySecret": "ca", "tls.existingSecret": "tls"},
    "ingress": {**INGRESS, "ingress.discoveryHost": "d.example.org", "ingress.tlsSecret": "tls"},
    "small": {"discovery.enabled": False, "storageSetup.enabled": False, **OWN_STORE},
}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Rendered:
    return render(VARIANTS[request.param])


def test_every_pod_is_restricted_and_has_no_way_into_the_api(variant: Rendered) -> None:
    for one in workloads(variant):
        spec = pod(one)["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container(one)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert f"ServiceAccount/{spec['serviceAccountName'].removeprefix('fc-')}" in variant
    for key, one in variant.items():
        if key.startswith("ServiceAccount/"):
            assert one["automountServiceAccountToken"] is False


def test_every_image_has_a_tag_that_is_not_latest_and_every_container_limits(variant: Rendered) -> None:
    for one in workloads(variant):
        image, resources = container(one)["image"], container(one)["resources"]
        assert re.search(r":[\w.-]+$", image), image
        assert not image.endswith(":latest")
        assert {"cpu", "memory"} <= resources["requests"].keys()
        assert "memory" in resources["limits"]
        for volume in pod(one)["spec"].get("volumes", []):
            if "emptyDir" in volume:
                assert volume["emptyDir"]["sizeLimit"], volume


def test_what_runs_all_the_time_is_probed_and_may_end_in_its_own_time(variant: Rendered) -> None:
    for key, one in variant.items():
        if not key.startswith(("Deployment/", "StatefulSet/")):
            continue
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container(one).keys(), key
        grace = pod(one)["spec"]["terminationGracePeriodSeconds"]
        if key in ("Deployment/combiner", "Deployment/modelstore"):
            assert grace > float(environment(one)["DRAIN_SECONDS"])
        if key in ("Deployment/gateway", "Deployment/discovery"):
            [word, seconds] = container(one)["lifecycle"]["preStop"]["exec"]["command"]
            assert word == "sleep"
            assert grace > float(seconds) + 10
    for name in OURS:
        if f"Deployment/{name}" in variant:
            ports = {p["name"]: p["containerPort"] for p in container(variant[f"Deployment/{name}"])["ports"]}
            assert ports["metrics"] == 9464
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert container(variant[f"Deployment/{name}"])[probe]["httpGet"]["port"] == "metrics"


def test_services_and_budgets_and_policies_find_their_pods(variant: Rendered) -> None:
    labels = [pod(one)["metadata"]["labels"] for one in workloads(variant)]

    def found(selector: Mapping[str, str]) -> bool:
        return any(selector.items() <= one.items() for one in labels)

    for key, one in variant.items():
        match key.partition("/")[0]:
            case "Service":
                assert found(one["spec"]["selector"]), key
            case "PodDisruptionBudget":
                assert found(one["spec"]["selector"]["matchLabels"]), key
            case "NetworkPolicy":
                assert found(one["spec"]["podSelector"]["matchLabels"]), key
                rules = [*one["spec"].get("ingress", []), *one["spec"].get("egress", [])]
                peers = [peer for rule in rules for peer in (*rule.get("from", []), *rule.get("to", []))]
                for peer in peers:
                    if "podSelector" in peer and "namespaceSelector" not in peer:
                        assert found(peer["podSelector"]["matchLabels"]), f"{key}: {peer}"


def test_a_release_asks_for_no_more_than_seven_tenths_of_a_core(default: Rendered) -> None:
    def millicores(one: dict[str, Any]) -> int:
        return int(container(one)["resources"]["requests"]["cpu"].removesuffix("m"))

    total = sum(millicores(one) * one["spec"].get("replicas", 1) for one in workloads(default))
    assert 0 < total <= 700


def test_replicas_are_spread_where_that_is_possible(default: Rendered) -> None:
    for name in ("combiner", "modelstore", "gateway"):
        one = default[f"Deployment/{name}"]
        assert one["spec"]["replicas"] == 2
        assert one["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
        spread = pod(one)["spec"]["topologySpreadConstraints"]
        assert {rule["whenUnsatisfiable"] for rule in spread} == {"ScheduleAnyway"}
        assert default[f"PodDisruptionBudget/{name}"]["spec"]["maxUnavailable"] == 1


def test_variables_of_the_services_are_settings_that_they_have(variant: Rendered) -> None:
    for name, settings in SERVICES.items():
        if f"Deployment/{name}" not in variant:
            continue
        given = environment(variant[f"Deployment/{name}"])
        assert {key.lower() for key in given} <= OF_THE_CHART & settings.model_fields.keys()


def test_nothing_is_reached_but_what_the_stack_needs(default: Rendered) -> None:
    closed = default["NetworkPolicy/closed"]["spec"]
    assert closed["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in closed
    assert "egress" not in closed
    for name in ("redis", "minio"):
        spec = default[f"NetworkPolicy/{name}"]["spec"]
        assert "egress" not in spec
        assert all(rule["from"] for rule in spec["ingress"])
    for name in ("combiner", "modelstore"):
        from_gateway, *_ = default[f"NetworkPolicy/{name}"]["spec"]["ingress"]
        [peer] = from_gateway["from"]
        assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"
    for key, one in default.items():
        if key.startswith("NetworkPolicy/"):
            for rule in one["spec"].get("egress", []):
                assert rule["to"], f"{key}: nothing is called that is not named"
                assert rule["ports"], key


def test_combiners_ask_modelstores_whether_they_are_ready(default: Rendered) -> None:
    """By the name of the headless service, which stands for each of them."""
    place = environment(default["Deployment/combiner"])["MODELSTORES"]
    assert place == "fc-modelstore:9464"
    assert default["Service/modelstore"]["spec"]["clusterIP"] == "None"
    asked, answering = (default[f"NetworkPolicy/{name}"]["spec"] for name in ("combiner", "modelstore"))

    def between(rules: list[Any], side: str, component: str) -> list[Any]:
        peer = {"app.kubernetes.io/component": component}
        return [
            rule["ports"]
            for rule in rules
            for one in rule.get(side, ())
            if peer.items() <= one["podSelector"]["matchLabels"].items()
        ]

    with_names = [rule for rule in asked["egress"] if "podSelector" in rule["to"][0]]
    assert between(with_names, "to", "modelstore") == [[{"port": 9464}]]
    assert between(answering["ingress"], "from", "combiner") == [[{"port": 9464}]]


def test_made_passwords_are_long_and_differ(default: Rendered) -> None:
    words = [
        word
        for key, one in default.items()
        if key.startswith("Secret/")
        for word in one["stringData"].values()
    ]
    assert len(words) == 8
    assert len(set(words)) == len(words)
    assert all(re.fullmatch(r"(fct_)?[A-Za-z0-9]{36}", word) for word in words)


def test_no_secret_is_in_anything_but_a_secret(default: Rendered) -> None:
    words = [
        w for key, one in default.items() if key.startswith("Secret/") for w in one["stringData"].values()
    ]
    others = json.dumps({key: one for key, one in default.items() if not key.startswith("Secret/")})
    assert not [word for word in words if word in others]


def test_a_set_up_that_is_to_differ_is_another_job() -> None:
    def name(values: Mapping[str, object]) -> str:
        secrets = {"minio.existingSecret": "a", "redis.existingSecret": "b", "access.existingSecret": "c"}
        return str(render({**secrets, **values})["Job/storage"]["metadata"]["name"])

    assert name({}) == name({}) == name({"combiner.replicas": 3})
    assert len({name({}), name({"image.tag": "0.2.0"}), name({"minio.bucket": "other"})}) == 3


def test_a_changed_gateway_starts_anew(default: Rendered) -> None:
    config = default["ConfigMap/gateway"]["data"]["haproxy.cfg"]
    assert config == (CHART.parent / "haproxy" / "haproxy.cfg").read_text()
    assert pod(default["Deployment/gateway"])["metadata"]["annotations"]["checksum/config"]


# For Prometheus.


def test_kinds_of_the_operator_are_as_it_wants_them() -> None:
    made = [one for one in render(EVERYTHING).values() if one["kind"] in KINDS]
    assert len(made) == len(KINDS)
    for one in made:
        check(one)


def test_alerts_are_those_of_the_stack_for_this_release_alone() -> None:
    truth = yaml.safe_load((CHART.parent / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
    [group] = render(EVERYTHING)["PrometheusRule/alerts"]["spec"]["groups"]
    assert [rule["alert"] for rule in group["rules"]] == [rule["alert"] for rule in truth]
    mine = f'namespace="{NAMESPACE}",release="{RELEASE}"'
    for rule, original in zip(group["rules"], truth, strict=True):
        selectors = re.findall(
            r"\b(?:up|backend_up|process_start_time_seconds|fedcombiner_\w+|minio_\w+)\b(.?)", rule["expr"]
        )
        assert selectors
        assert set(selectors) == {"{"}, rule["expr"]
        assert rule["expr"].count(mine) == len(selectors)
        bare = re.sub(rf"\{{{mine}\}}", "", rule["expr"]).replace(f"{mine},", "")
        assert bare == original["expr"]
        assert {k: v for k, v in rule.items() if k != "expr"} == {
            k: v for k, v in original.items() if k != "expr"
        }


def test_dashboards_are_those_of_the_stack() -> None:
    made = render(EVERYTHING)["ConfigMap/dashboards"]
    truth = {
        f"federated-combiner-{p.name}": p.read_text() for p in (CHART.parent / "grafana/dashboards").iterdir()
    }
    assert made["data"] == truth


def test_the_monitor_finds_the_service_of_metrics_and_names_jobs_as_the_dashboards_do() -> None:
    made = render(EVERYTHING)
    spec, service = made["ServiceMonitor/metrics"]["spec"], made["Service/metrics"]
    assert spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert {e["port"] for e in spec["endpoints"]} == {p["name"] for p in service["spec"]["ports"]}
    for endpoint in spec["endpoints"]:
        targets = {rule.get("targetLabel") for rule in endpoint["relabelings"]}
        assert {"job", "release"} <= targets
        assert {"action": "labeldrop", "regex": "service"} in endpoint["relabelings"]


# Each value: absent, as it comes, and overridden.

Look = Callable[[Rendered], object]


@dataclass(frozen=True)
class Option:
    """A value, where it shows, and what is there as it comes (`before`) and when it is `given` (`after`)."""

    name: str
    given: object
    look: Look
    before: object
    after: object
    beside: Mapping[str, object] = field(default_factory=dict)


def at(key: str, *path: str | int) -> Look:
    def look(made: Rendered) -> object:
        found: Any = made.get(key)
        for step in path:
            if found is None:
                return None
            found = found[step] if isinstance(step, int) else found.get(step)
        return found

    return look


def env(part: str, name: str) -> Look:
    return lambda made: environment(made[f"Deployment/{part}"]).get(name)


def of(key: str, *path: str | int) -> Look:
    """Something of a container."""
    return lambda made: at("it", *path)({"it": container(made[key])})


def spec(key: str, *path: str | int) -> Look:
    """Something of a pod."""
    return lambda made: at("it", "spec", *path)({"it": pod(made[key])})


def volume(key: str, name: str, *path: str) -> Look:
    def look(made: Rendered) -> object:
        found = [one for one in pod(made[key])["spec"]["volumes"] if one["name"] == name]
        return at("it", *path)({"it": found[0]}) if found else None

    return look


def present(key: str) -> Look:
    return lambda made: key in made


def egress_ports(part: str) -> Look:
    return lambda made: [r["ports"] for r in made[f"NetworkPolicy/{part}"]["spec"]["egress"] if "to" not in r]


def egress_to(part: str, port: int) -> Look:
    def look(made: Rendered) -> object:
        rules = made[f"NetworkPolicy/{part}"]["spec"]["egress"]
        return next((rule.get("to") for rule in rules if rule["ports"][0]["port"] == port), "none")

    return look


def ingress_from(part: str, port: int) -> Look:
    def look(made: Rendered) -> object:
        rules = made[f"NetworkPolicy/{part}"]["spec"]["ingress"]
        return next(rule.get("from") for rule in rules if rule["ports"] == [{"port": port}])

    return look


def same(value: object) -> dict[str, object]:
    return {"given": value, "after": value}


def resources(name: str, key: str) -> Option:
    default: Any = VALUES
    for step in name.split("."):
        default = default[step]
    return Option(name, RESOURCES, of(key, "resources"), default, RESOURCES)


def service(part: str, port: int) -> Iterator[Option]:
    key, name = f"Service/{part}", f"{part}.service"
    outside = {"advertise": "fl.example.org:12080"}
    balanced = {**outside, f"{name}.type": "LoadBalancer"}
    yield Option(f"{name}.type", "NodePort", at(key, "spec", "type"), "ClusterIP", "NodePort", outside)
    yield Option(f"{name}.port", 9999, at(key, "spec", "ports", 0, "port"), port, 9999)
    yield Option(
        f"{name}.nodePort",
        31000,
        at(key, "spec", "ports", 0, "nodePort"),
        None,
        31000,
        {**outside, f"{name}.type": "NodePort"},
    )
    yield Option(f"{name}.annotations", {"a": "b"}, at(key, "metadata", "annotations"), None, {"a": "b"})
    yield Option(
        f"{name}.loadBalancerClass", "lb", at(key, "spec", "loadBalancerClass"), None, "lb", balanced
    )
    yield Option(
        f"{name}.loadBalancerSourceRanges",
        ["10.0.0.0/8"],
        at(key, "spec", "loadBalancerSourceRanges"),
        None,
        ["10.0.0.0/8"],
        balanced,
    )


def our_service(name: str) -> Iterator[Option]:
    key = f"Deployment/{name}"
    yield resources(f"{name}.resources", key)
    yield Option(
        f"{name}.scratchSize",
        look=volume(key, "scratch", "emptyDir", "sizeLimit"),
        before=VALUES[name]["scratchSize"],
        **same("7Gi"),
    )
    yield Option(
        f"{name}.settings",
        {"MAX_MODEL_BYTES": 12345678901},
        env(name, "MAX_MODEL_BYTES"),
        None,
        "12345678901",
    )
    if name != "discovery":
        yield Option(f"{name}.replicas", look=at(key, "spec", "replicas"), before=2, **same(3))
        yield Option(f"{name}.drainSeconds", 33.5, env(name, "DRAIN_SECONDS"), "10", "33.5")
        yield Option(f"{name}.drainSeconds", 33.5, spec(key, "terminationGracePeriodSeconds"), 30, 54)


COMBINER, GATEWAY, DISCOVERY = "Deployment/combiner", "Deployment/gateway", "Deployment/discovery"
KUBE_SYSTEM = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}]
PEER = [{"ipBlock": {"cidr": "10.1.0.0/16"}}]

OPTIONS = [
    Option(
        "fullnameOverride", "fc-x", at("Deployment/x-combiner", "metadata", "name"), None, "fc-x-combiner"
    ),
    Option(
        "clusterDomain",
        "corp",
        env("gateway", "COMBINERS"),
        "fc-combiner.learning.svc.cluster.local:12080",
        "fc-combiner.learning.svc.corp:12080",
    ),
    Option(
        "advertise",
        look=env("combiner", "ADVERTISE"),
        before="fc-gateway.learning.svc.cluster.local:12080",
        **same("fl.example.org:443"),
    ),
    Option("advertise", "fl.example.org:443", egress_ports("discovery"), [], [[{"port": 443}]]),
    Option("logLevel", look=env("modelstore", "LOG_LEVEL"), before="info", **same("debug")),
    Option(
        "image.registry",
        "r.example.org:5000",
        of(COMBINER, "image"),
        "federated-combiner/combiner:0.1.0",
        "r.example.org:5000/federated-combiner/combiner:0.1.0",
    ),
    Option(
        "image.prefix",
        "mine",
        of(DISCOVERY, "image"),
        "federated-combiner/discovery-mock:0.1.0",
        "mine/discovery-mock:0.1.0",
    ),
    Option(
        "image.tag",
        "9",
        of("Pod/test", "image"),
        "federated-combiner/demo:0.1.0",
        "federated-combiner/demo:9",
    ),
    Option(
        "image.pullPolicy", look=of("Job/storage", "imagePullPolicy"), before="IfNotPresent", **same("Always")
    ),
    Option(
        "imagePullSecrets", look=spec(GATEWAY, "imagePullSecrets"), before=None, **same([{"name": "pull"}])
    ),
    Option("access.existingSecret", "mine", present("Secret/operator-token"), True, False),
    Option(
        "access.existingSecret",
        "mine",
        env("combiner", "DISCOVERY_TOKEN"),
        "fc-operator-token:operator-token",
        "mine:operator-token",
    ),
    Option("access.requireClientTokens", True, env("combiner", "REQUIRE_CLIENT_TOKENS"), "false", "true"),
    Option(
        "access.requireClientTokens",
        False,
        env("modelstore", "REQUIRE_CLIENT_TOKENS"),
        "true",
        "false",
        {"tls.existingSecret": "tls"},
    ),
    Option(
        "tls.existingSecret",
        "tls",
        env("gateway", "GATEWAY_TLS"),
        None,
        "ssl crt /certificates/gateway.pem alpn h2",
    ),
    Option("tls.existingSecret", "tls", volume(GATEWAY, "certificates", "secret", "secretName"), None, "tls"),
    Option("tls.existingSecret", "tls", env("combiner", "ADVERTISE_TLS"), "false", "true"),
    Option(
        "tls.authorityInSecret",
        True,
        env("discovery", "COMBINER_CA_FILE"),
        None,
        "/authorities/gateway/ca.crt",
        {"tls.existingSecret": "tls"},
    ),
    Option("gateway.replicas", look=at(GATEWAY, "spec", "replicas"), before=2, **same(5)),
    Option("gateway.image", look=of(GATEWAY, "image"), before="haproxy:3.2", **same("r/haproxy:3.3")),
    resources("gateway.resources", GATEWAY),
    *service("gateway", 12080),
    *our_service("combiner"),
    *our_service("modelstore"),
    *our_service("discovery"),
    *service("discovery", 8092),
    Option("discovery.enabled", False, present(DISCOVERY), True, False),
    Option("discovery.enabled", False, env("combiner", "DISCOVERY_URL"), "http://fc-discovery:8092", None),
    Option(
        "discovery.url",
        "https://c.example.org",
        env("combiner", "DISCOVERY_URL"),
        None,
        "https://c.example.org",
        {"discovery.enabled": False},
    ),
    Option(
        "discovery.existingSecret",
        "theirs",
        env("combiner", "DISCOVERY_TOKEN"),
        "fc-operator-token:operator-token",
        "theirs:discovery-token",
        {"discovery.enabled": False, "discovery.url": "https://c.example.org"},
    ),
    Option(
        "redis.image", look=of("StatefulSet/redis", "image"), before="redis:7-bookworm", **same("redis:8.0")
    ),
    Option("redis.maxMemory", look=of("StatefulSet/redis", "env", 3, "value"), before="512mb", **same("2gb")),
    Option(
        "redis.storage.size",
        look=at(
            "StatefulSet/redis", "spec", "volumeClaimTemplates", 0, "spec", "resources", "requests", "storage"
        ),
        before="2Gi",
        **same("3Gi"),
    ),
    Option(
        "redis.storage.className",
        look=at("StatefulSet/redis", "spec", "volumeClaimTemplates", 0, "spec", "storageClassName"),
        before=None,
        **same("fast"),
    ),
    resources("redis.resources", "StatefulSet/redis"),
    Option(
        "redis.host",
        "r2.example.org",
        env("combiner", "REDIS_URL"),
        "redis://default@redis.example.org:6379/0",
        "redis://default@r2.example.org:6379/0",
        OWN_REDIS,
    ),
    Option("redis.port", 6380, egress_ports("modelstore"), [[{"port": 6379}]], [[{"port": 6380}]], OWN_REDIS),
    Option(
        "redis.tls",
        True,
        env("modelstore", "REDIS_URL"),
        "redis://tokens@redis.example.org:6379/0",
        "rediss://tokens@redis.example.org:6379/0",
        OWN_REDIS,
    ),
    Option(
        "redis.database",
        7,
        env("discovery", "REDIS_URL"),
        "redis://tokens@redis.example.org:6379/0",
        "redis://tokens@redis.example.org:6379/7",
        OWN_REDIS,
    ),
    Option(
        "redis.user",
        "fc",
        env("combiner", "REDIS_URL"),
        "redis://default@redis.example.org:6379/0",
        "redis://fc@redis.example.org:6379/0",
        OWN_REDIS,
    ),
    Option(
        "redis.tokensUser",
        "reader",
        env("modelstore", "REDIS_URL"),
        "redis://tokens@fc-redis:6379/0",
        "redis://reader@fc-redis:6379/0",
    ),
    Option("redis.tokensUser", "reader", of("StatefulSet/redis", "env", 4, "value"), "tokens", "reader"),
    Option(
        "redis.existingSecret",
        "mine",
        env("combiner", "REDIS_PASSWORD"),
        "fc-redis:redis-password",
        "mine:redis-password",
    ),
    Option("redis.existingSecret", "mine", present("Secret/redis"), True, False),
    Option(
        "minio.image",
        look=of("StatefulSet/minio", "image"),
        before=VALUES["minio"]["image"],
        **same("minio/minio:X"),
    ),
    Option(
        "minio.storage.size",
        look=at(
            "StatefulSet/minio", "spec", "volumeClaimTemplates", 0, "spec", "resources", "requests", "storage"
        ),
        before="10Gi",
        **same("3Ti"),
    ),
    Option(
        "minio.storage.className",
        look=at("StatefulSet/minio", "spec", "volumeClaimTemplates", 0, "spec", "storageClassName"),
        before=None,
        **same("fast"),
    ),
    resources("minio.resources", "StatefulSet/minio"),
    Option(
        "minio.url",
        "http://s3.example.org:9999",
        env("discovery", "MINIO_URL"),
        "https://s3.example.org",
        "http://s3.example.org:9999",
        OWN_STORE,
    ),
    Option(
        "minio.url",
        "http://s3.example.org:9999",
        egress_ports("storage-setup"),
        [[{"port": 443}]],
        [[{"port": 9999}]],
        OWN_STORE,
    ),
    Option(
        "minio.bucket", look=env("modelstore", "MINIO_BUCKET"), before="federated-combiner", **same("other")
    ),
    Option("minio.region", look=env("combiner", "MINIO_REGION"), before="us-east-1", **same("eu-north-1")),
    Option(
        "minio.users.combiner",
        look=env("combiner", "MINIO_ACCESS_KEY"),
        before="combiner",
        **same("c0mbiner"),
    ),
    Option(
        "minio.users.modelstore",
        look=env("modelstore", "MINIO_ACCESS_KEY"),
        before="modelstore",
        **same("m0del"),
    ),
    Option(
        "minio.users.discovery",
        look=env("discovery", "MINIO_ACCESS_KEY"),
        before="discovery",
        **same("disc0"),
    ),
    Option(
        "minio.existingSecret",
        "mine",
        env("modelstore", "MINIO_SECRET_KEY"),
        "fc-minio:modelstore-secret-key",
        "mine:modelstore-secret-key",
    ),
    Option("minio.existingSecret", "mine", present("Secret/minio"), True, False),
    Option(
        "minio.authoritySecret",
        "ca",
        env("modelstore", "MINIO_CA_FILE"),
        None,
        "/authorities/store/ca.crt",
        OWN_STORE,
    ),
    Option(
        "minio.authoritySecret",
        "ca",
        volume("Job/storage", "store-authority", "secret", "secretName"),
        None,
        "ca",
        OWN_STORE,
    ),
    Option("storageSetup.enabled", False, present("Job/storage"), True, False, OWN_STORE),
    Option(
        "storageSetup.users",
        False,
        of("Job/storage", "command"),
        ["combiner", "storage", "setup", "--wait", "300"],
        ["combiner", "storage", "setup", "--wait", "300", "--no-users"],
        OWN_STORE,
    ),
    resources("storageSetup.resources", "Job/storage"),
    Option(
        "ingress.enabled",
        True,
        present("Ingress/gateway"),
        False,
        True,
        {**INGRESS, "ingress.enabled": False},
    ),
    Option(
        "ingress.className",
        look=at("Ingress/gateway", "spec", "ingressClassName"),
        before=None,
        **same("nginx"),
        beside=INGRESS,
    ),
    Option(
        "ingress.annotations",
        look=at("Ingress/gateway", "metadata", "annotations"),
        before=None,
        **same({"nginx.ingress.kubernetes.io/backend-protocol": "GRPC"}),
        beside=INGRESS,
    ),
    Option(
        "ingress.host",
        look=at("Ingress/gateway", "spec", "rules", 0, "host"),
        before="fl.example.org",
        **same("x.example.org"),
        beside=INGRESS,
    ),
    Option(
        "ingress.discoveryHost",
        look=at("Ingress/discovery", "spec", "rules", 0, "host"),
        before=None,
        **same("d.example.org"),
        beside=INGRESS,
    ),
    Option(
        "ingress.tlsSecret",
        "tls",
        at("Ingress/gateway", "spec", "tls"),
        None,
        [{"secretName": "tls", "hosts": ["fl.example.org"]}],
        INGRESS,
    ),
    Option("ingress.tlsSecret", "tls", env("combiner", "ADVERTISE_TLS"), "false", "true", INGRESS),
    Option("networkPolicy.enabled", False, present("NetworkPolicy/closed"), True, False),
    Option(
        "networkPolicy.clients",
        PEER,
        lambda made: (ingress_from("gateway", 12080)(made) or [None])[0],
        None,
        PEER[0],
    ),
    Option("networkPolicy.metrics", look=ingress_from("combiner", 9464), before=None, **same(PEER)),
    Option("networkPolicy.dns", look=egress_to("combiner", 53), before=KUBE_SYSTEM, **same(PEER)),
    Option(
        "networkPolicy.redis", look=egress_to("combiner", 6379), before=None, **same(PEER), beside=OWN_REDIS
    ),
    Option(
        "networkPolicy.s3", look=egress_to("modelstore", 443), before=None, **same(PEER), beside=OWN_STORE
    ),
    Option(
        "networkPolicy.extraEgress",
        [{"ports": [{"port": 7}]}],
        egress_ports("modelstore"),
        [],
        [[{"port": 7}]],
    ),
    Option("metrics.serviceMonitor.enabled", True, present("ServiceMonitor/metrics"), False, True),
    Option(
        "metrics.serviceMonitor.interval",
        look=at("ServiceMonitor/metrics", "spec", "endpoints", 0, "interval"),
        before="15s",
        **same("1m"),
        beside=EVERYTHING,
    ),
    Option(
        "metrics.serviceMonitor.labels",
        {"release": "p"},
        at("ServiceMonitor/metrics", "metadata", "labels", "release"),
        None,
        "p",
        EVERYTHING,
    ),
    Option("metrics.prometheusRule.enabled", True, present("PrometheusRule/alerts"), False, True),
    Option(
        "metrics.prometheusRule.labels",
        {"release": "p"},
        at("PrometheusRule/alerts", "metadata", "labels", "release"),
        None,
        "p",
        EVERYTHING,
    ),
    Option("metrics.dashboards.enabled", True, present("ConfigMap/dashboards"), False, True),
    Option(
        "metrics.dashboards.labels",
        {"folder": "fl"},
        at("ConfigMap/dashboards", "metadata", "labels", "folder"),
        None,
        "fl",
        EVERYTHING,
    ),
    Option(
        "pods.annotations",
        {"a": "b"},
        lambda made: pod(made["StatefulSet/redis"])["metadata"]["annotations"].get("a"),
        None,
        "b",
    ),
    Option(
        "pods.labels", {"a": "b"}, lambda made: pod(made[COMBINER])["metadata"]["labels"].get("a"), None, "b"
    ),
    Option("pods.nodeSelector", look=spec("Job/storage", "nodeSelector"), before=None, **same({"a": "b"})),
    Option(
        "pods.tolerations", look=spec(COMBINER, "tolerations"), before=None, **same([{"operator": "Exists"}])
    ),
    Option("pods.affinity", look=spec(COMBINER, "affinity"), before=None, **same({"nodeAffinity": {}})),
    Option("pods.priorityClassName", look=spec("Pod/test", "priorityClassName"), before=None, **same("high")),
    resources("tests.resources", "Pod/test"),
]


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The names of all values; resources, and what is empty, is one."""
    for key, value in values.items():
        if isinstance(value, dict) and value and key not in ("resources", "labels"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_there_is_a_test_for_every_value() -> None:
    assert {one.name for one in OPTIONS} == set(leaves(VALUES)) - {"minio.embedded", "redis.embedded"}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_a_value_shows_where_it_should(option: Option) -> None:
    assert option.look(render(option.beside)) == option.before
    assert option.look(render({**option.beside, option.name: option.given})) == option.after


@pytest.mark.parametrize("name", sorted(set(leaves(VALUES))))
def test_a_value_that_is_taken_away_is_missed(name: str) -> None:
    if name in ("access.requireClientTokens", "gateway.service.nodePort", "discovery.service.nodePort"):
        assert render({name: None}).keys() == render().keys()
        return
    with pytest.raises(Refused, match=re.escape(f"missing property '{name.rpartition('.')[2]}'")):
        template({name: None})


# What is refused.


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"combiner.replcas": 3}, "additional properties 'replcas' not allowed"),
        ({"combiner.replicas": 0}, "minimum: got 0, want 1"),
        ({"combiner.replicas": "3"}, "got string, want integer"),
        ({"combiner.settings.MAX_CLIENTZ": 3}, "additional properties 'MAX_CLIENTZ' not allowed"),
        ({"combiner.settings.MAX_CLIENTS": 0}, "minimum: got 0, want 1"),
        ({"combiner.settings.REDIS_URL": "redis://x"}, "additional properties 'REDIS_URL' not allowed"),
        ({"combiner.settings.INSECURE": True}, "additional properties 'INSECURE' not allowed"),
        ({"discovery.settings.PACKAGE": "elsewhere"}, "value must be one of 'remote', 'local'"),
        ({"advertise": "fl.example.org"}, "does not match pattern"),
        ({"image.tag": "latest"}, "'not' failed"),
        ({"redis.image": "redis:latest"}, "'not' failed"),
        ({"gateway.image": "haproxy"}, "does not match pattern"),
        ({"logLevel": "verbose"}, "value must be one of"),
        ({"combiner.resources.limits": {"memory": None}}, "missing property 'memory'"),
        ({"gateway.service.type": "ExternalName"}, "value must be one of"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(values: Mapping[str, object], said: str) -> None:
    with pytest.raises(Refused) as error:
        template(values)
    assert said in str(error.value)
    assert next(iter(values)).split(".")[0] in str(error.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"redis.host": "r"}, "say redis.embedded=false too"),
        ({"redis.user": "fc"}, "redis.user is for a Redis of your own"),
        ({"redis.embedded": False}, "redis.embedded=false needs redis.host"),
        ({"redis.embedded": False, "redis.host": "r"}, "redis.embedded=false needs redis.existingSecret"),
        ({"minio.url": "http://m:9000"}, "say minio.embedded=false too"),
        ({"storageSetup.enabled": False}, "leave storageSetup.enabled and storageSetup.users true"),
        ({"minio.embedded": False}, "minio.embedded=false needs minio.url"),
        (
            {"minio.embedded": False, "minio.url": "http://m:9000"},
            "minio.embedded=false needs minio.existingSecret",
        ),
        ({"discovery.url": "http://d"}, "say discovery.enabled=false too"),
        ({"discovery.enabled": False, "discovery.existingSecret": "s"}, "discovery.url, which is empty"),
        ({"tls.authorityInSecret": True}, "set tls.existingSecret"),
        ({"ingress.enabled": True, "advertise": "a:1"}, "ingress.enabled=true needs ingress.host"),
        ({"ingress.enabled": True, "ingress.host": "a"}, "ingress.enabled=true needs advertise"),
        ({**INGRESS, "tls.existingSecret": "tls"}, "TLS ends twice"),
        (
            {**INGRESS, "ingress.discoveryHost": "d", "discovery.enabled": False},
            "ingress.discoveryHost leads to a discovery that is turned off",
        ),
        ({"gateway.service.type": "LoadBalancer"}, "gateway.service.type=LoadBalancer needs advertise"),
        ({"gateway.service.nodePort": 31000}, "gateway.service.nodePort needs gateway.service.type"),
    ],
)
def test_what_makes_no_sense_together_is_refused_in_a_sentence(
    values: Mapping[str, object], said: str
) -> None:
    with pytest.raises(Refused) as error:
        template(values)
    assert said in str(error.value)


def test_the_values_in_the_documentation_are_taken() -> None:
    examples = re.findall(
        r"^```yaml\n(.*?)^```", (CHART.parents[1] / "docs/kubernetes.md").read_text(), re.M | re.S
    )
    assert len(examples) == 2
    for example in examples:
        assert "Deployment/combiner" in render(yaml.safe_load(example))


def test_what_is_ones_own_leaves_the_embedded_one_out() -> None:
    made = render({**OWN_STORE, **OWN_REDIS})
    assert not [key for key in made if "minio" in key or "redis" in key]
    assert environment(made[COMBINER])["MINIO_URL"] == "https://s3.example.org"
    assert "@redis.example.org:6379/" in environment(made[COMBINER])["REDIS_URL"]
    assert [port["name"] for port in made["Service/metrics"]["spec"]["ports"]] == ["metrics"]


def test_the_notes_name_the_secret_of_the_token_and_warn_of_what_is_for_trying_out() -> None:
    done = subprocess.run(
        [helm(), "install", RELEASE, str(CHART), "--dry-run=client", "--namespace", NAMESPACE],
        capture_output=True,
        text=True,
    )
    notes = done.stdout.partition("NOTES:")[2]
    assert "get secret fc-operator-token" in notes
    assert "WARNING: this is for trying out" in notes
