"""What is done to a cluster: with helm and kubectl, on whatever KUBECONFIG names."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from tests.e2e.stacks import ROOT, free_port

CHART: Final = str(ROOT / "deploy" / "helm")
READY_S: Final = 180
OURS: Final = "app.kubernetes.io/name=federated-combiner"
LOGS: Final = ROOT / "out" / "e2e-k8s-logs"


def run(*words: str, stdin: str = "") -> str:
    """What a command printed. AssertionError with all it said when it fails."""
    done = subprocess.run(words, capture_output=True, text=True, input=stdin)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def wait_until(what: str, there: Callable[[], object], within: float = READY_S) -> None:
    deadline = time.monotonic() + within
    while not there():
        assert time.monotonic() < deadline, f"waited {within:g} s for {what}"
        time.sleep(0.5)


class Release:
    """One installation of the chart, under a name that is the same in each namespace."""

    name: Final = "fc"

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def helm(self, *words: str) -> str:
        return run("helm", *words, "--namespace", self.namespace)

    def kubectl(self, *words: str, stdin: str = "") -> str:
        return run("kubectl", "--namespace", self.namespace, *words, stdin=stdin)

    def get(self, *words: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", *words, "-o", "json"))["items"]
        return found

    def make_namespace(self) -> None:
        """A new one that takes restricted pods only."""
        run("kubectl", "delete", "namespace", self.namespace, "--ignore-not-found", "--wait")
        run("kubectl", "create", "namespace", self.namespace)
        restricted = [f"pod-security.kubernetes.io/{mode}=restricted" for mode in ("enforce", "warn")]
        run("kubectl", "label", "namespace", self.namespace, *restricted)

    def install(self, *values: str) -> None:
        self.helm("install", self.name, CHART, "--wait", "--timeout", f"{READY_S}s", *sets(values))

    def upgrade(self, *values: str) -> None:
        words = ("--reuse-values", "--wait", "--timeout", "5m")
        self.helm("upgrade", self.name, CHART, *words, *sets(values))

    def pods(self, part: str = "") -> list[dict[str, Any]]:
        """Those that are not about to end, of one part or of all."""
        selector = f"{OURS},app.kubernetes.io/instance={self.name}"
        if part:
            selector += f",app.kubernetes.io/component={part}"
        pods = self.get("pods", "--selector", selector)
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def ready(self, part: str, replicas: int) -> None:
        """Wait until so many pods of the part are ready, and no others are left."""

        def there() -> bool:
            pods = self.get("pods", "--selector", f"{OURS},app.kubernetes.io/component={part}")
            return len(pods) == replicas and all(is_ready(pod) for pod in pods)

        wait_until(f"{replicas} ready pods of {part}", there)

    def secret(self, name: str, key: str) -> str:
        path = "{.data." + key + "}"
        coded = self.kubectl("get", "secret", f"{self.name}-{name}", "-o", f"jsonpath={path}")
        return run("base64", "-d", stdin=coded)

    def restarts(self) -> dict[str, int]:
        """Of the containers that are there, those that were started more than once."""
        statuses = {
            pod["metadata"]["name"]: pod["status"].get("containerStatuses", []) for pod in self.pods()
        }
        counts = {name: sum(one["restartCount"] for one in many) for name, many in statuses.items()}
        return {name: count for name, count in counts.items() if count}

    def save_logs(self) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        for pod in self.get("pods"):
            name = pod["metadata"]["name"]
            said = subprocess.run(
                ["kubectl", "--namespace", self.namespace, "logs", name], capture_output=True, text=True
            )
            (LOGS / f"{self.namespace}-{name}.log").write_text(said.stdout + said.stderr)
        (LOGS / f"{self.namespace}-events.log").write_text(self.kubectl("get", "events"))

    @contextmanager
    def forwarded(self, service: str, port: int, local: int = 0) -> Iterator[int]:
        """A port of this machine that leads to the service, also when the pod behind it has ended."""
        local = local or free_port()
        command = (
            "kubectl",
            "-n",
            self.namespace,
            "port-forward",
            f"svc/{self.name}-{service}",
            f"{local}:{port}",
        )
        forward = Forward(command)
        try:
            wait_until(f"a way to {service}", lambda: answers(local), 60)
            yield local
        finally:
            forward.close()


class Forward:
    """`kubectl port-forward` ends with the pod that it leads to; then it is started again."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self._command = command
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        if self._process is not None:
            self._process.terminate()
        self._thread.join(10)

    def _keep(self) -> None:
        while not self._closed.is_set():
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            self._process.wait()
            self._closed.wait(0.2)


def sets(values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True"
