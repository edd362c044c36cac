"""What the scenarios run against: a stack of which only addresses are known, and what can be done to it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import httpx

ROOT: Final = Path(__file__).parents[2]
PROJECT: Final = "federated-combiner-e2e"
LOGS: Final = ROOT / "out" / "e2e-logs"
UP_S: Final = 300.0
# Where `combiner serve` says it is; a narrow line may be broken.
SAID: Final = re.compile(r"gRPC\s+(\S+)\s+·\s+discovery\s+(\S+)\s+·\s+metrics\s+(\S+)/metrics")

# Within a container: a request to the port of operations.
ASK: Final = """
import sys, urllib.request as r
method, path, body, token = sys.argv[1:]
headers = {"Authorization": f"Bearer {token}"} if token else {}
request = r.Request(f"http://127.0.0.1:9464{path}", body.encode() or None, headers, method=method)
sys.stdout.write(r.urlopen(request).read().decode())
"""


class Stack(Protocol):
    """Attributes:
    address: HOST:PORT of gRPC; `discovery`: URL.
    token: the operator's, "" where none is asked for.
    can: what a scenario may need: "logs", "metrics", "script" (of discovery's answers), "services".
    """

    name: str
    address: str
    discovery: str
    token: str
    can: frozenset[str]

    def logs(self) -> list[dict[str, Any]]:
        """Everything that our services have said, one JSON object a line."""

    async def total(self, metric: str, **labels: str) -> float:
        """The sum of a counter over all processes, now."""

    async def script(self, *rules: Mapping[str, object]) -> None:
        """Have discovery answer by these rules (docs/discovery.md)."""

    async def scripted(self) -> list[dict[str, Any]]:
        """The rules that are not used up."""


class Remote:
    """Something that is already running."""

    can: frozenset[str] = frozenset()

    def __init__(self, host: str) -> None:
        self.name = host
        name, _, port = host.partition(":")
        self.address = f"{name}:{port or 12080}"
        self.discovery = os.environ.get("COMBINER_DISCOVERY", f"http://{name}:8092")
        self.token = os.environ.get("COMBINER_TOKEN", "")

    def logs(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    async def total(self, metric: str, **labels: str) -> float:
        raise NotImplementedError

    async def script(self, *rules: Mapping[str, object]) -> None:
        raise NotImplementedError

    async def scripted(self) -> list[dict[str, Any]]:
        raise NotImplementedError


class Standalone:
    """`combiner serve` as a process of its own."""

    name = "standalone"
    token = ""
    can = frozenset({"logs", "metrics", "script"})

    def __init__(self, log: Path, address: str, discovery: str, metrics: str) -> None:
        self._log = log
        self.address = address
        self.discovery = discovery
        self._metrics = metrics

    def logs(self) -> list[dict[str, Any]]:
        # Before its log begins, `combiner serve` tells a person where it is.
        return parsed("\n".join(line for line in self._log.read_text().splitlines() if line[:1] == "{"))

    async def total(self, metric: str, **labels: str) -> float:
        async with httpx.AsyncClient(trust_env=False) as http:
            return summed((await http.get(f"{self._metrics}/metrics")).text, metric, labels)

    async def script(self, *rules: Mapping[str, object]) -> None:
        async with httpx.AsyncClient(trust_env=False) as http:
            (await http.put(f"{self._metrics}/script", json={"rules": rules})).raise_for_status()

    async def scripted(self) -> list[dict[str, Any]]:
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.get(f"{self._metrics}/script")
        rules: list[dict[str, Any]] = answer.json()["rules"]
        return rules


@contextmanager
def standalone() -> Iterator[Standalone]:
    command = (sys.executable, "-c", "from fedcombiner.cli.main import main; main()", "serve")
    ports = ("--port", "0", "--discovery-port", "0", "--metrics-port", "0")
    with tempfile.TemporaryDirectory(prefix="fedcombiner-e2e-") as directory:
        log = Path(directory) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen([*command, *ports, "--data", f"{directory}/data"], stderr=output)
        try:
            yield Standalone(log, *_addresses(process, log))
        finally:
            process.terminate()
            process.wait(20)


def _addresses(process: subprocess.Popen[bytes], log: Path) -> Sequence[str]:
    deadline = time.monotonic() + UP_S
    while time.monotonic() < deadline and process.poll() is None:
        if found := SAID.search(log.read_text()):
            return found.groups()
        time.sleep(0.02)
    raise AssertionError(f"combiner serve did not say its addresses: {log.read_text()[-2000:]}")


class Compose:
    """The containers of deploy/docker-compose.yml, under a project of their own and on free ports."""

    name = "compose"
    token = ""
    can = frozenset({"logs", "metrics", "script", "services"})

    def __init__(self) -> None:
        gateway, discovery, prometheus = (free_port() for _ in range(3))
        self.address = f"localhost:{gateway}"
        self.discovery = f"http://localhost:{discovery}"
        self.prometheus = f"http://localhost:{prometheus}"
        self._overlays: tuple[str, ...] = ()
        self._environment = os.environ | {
            "ADVERTISE": self.address,
            "GATEWAY_PORT": str(gateway),
            "DISCOVERY_PORT": str(discovery),
            "PROMETHEUS_PORT": str(prometheus),
        }

    def run(self, *words: str) -> str:
        """Of `docker compose`: what it printed. AssertionError with all it said when it fails."""
        done = self._compose(words)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    async def refused(self, *words: str, project: str = PROJECT, **environment: str) -> str:
        """Of `docker compose`, with this in its environment: all it said when it failed, as it must."""
        done = await asyncio.to_thread(self._compose, words, environment, project)
        assert done.returncode != 0, f"{' '.join(words)} did not fail"
        return done.stdout + done.stderr

    def _compose(
        self, words: Sequence[str], environment: Mapping[str, str] | None = None, project: str = PROJECT
    ) -> subprocess.CompletedProcess[str]:
        files = [str(ROOT / "deploy" / name) for name in ("docker-compose.yml", *self._overlays)]
        named = [word for file in files for word in ("-f", file)]
        command = ["docker", "compose", "-p", project, *named, *words]
        variables = {**self._environment, **(environment or {})}
        return subprocess.run(command, env=variables, capture_output=True, text=True)

    def up(self) -> None:
        """Returns when all containers are healthy."""
        self.run("up", "--detach", "--no-build", "--wait", "--wait-timeout", f"{UP_S:.0f}")
        self.token = self.run("exec", "-T", "combiner-1", "cat", "/secrets/operator-token").strip()

    @asynccontextmanager
    async def with_overlay(self, name: str, **environment: str) -> AsyncIterator[None]:
        """As it is with this file of deploy/ too, and then as it was."""
        before = self._environment
        self._overlays, self._environment = (name,), before | environment
        try:
            await asyncio.to_thread(self.up)
            yield
        finally:
            self._overlays, self._environment = (), before
            await asyncio.to_thread(self.up)

    async def do(self, *words: str) -> str:
        return await asyncio.to_thread(self.run, *words)

    def containers(self) -> list[dict[str, Any]]:
        """What `docker compose ps` says of each."""
        return [json.loads(line) for line in self.run("ps", "--all", "--format", "json").splitlines()]

    def started(self, *services: str) -> list[str]:
        """When the process of each was started."""
        ids = self.run("ps", "--all", "--quiet", *services).split()
        command = ["docker", "inspect", "--format", "{{.Id}} {{.State.StartedAt}}", *ids]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return sorted(done.stdout.splitlines())

    def logs(self) -> list[dict[str, Any]]:
        ours = ("combiner-1", "combiner-2", "modelstore-1", "modelstore-2", "discovery-mock")
        return parsed(self.run("logs", "--no-log-prefix", "--no-color", *ours))

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector of a PromQL expression."""
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            answer = await http.get(f"{self.prometheus}/api/v1/query", params={"query": expression})
        body = answer.json()
        assert body["status"] == "success", f"{expression}: {body.get('error')}"
        result: list[dict[str, Any]] = body["data"]["result"]
        return result

    async def rules(self) -> list[dict[str, Any]]:
        """The rules that Prometheus has loaded."""
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            body = (await http.get(f"{self.prometheus}/api/v1/rules")).json()
        return [rule for group in body["data"]["groups"] for rule in group["rules"]]

    async def total(self, metric: str, **labels: str) -> float:
        # From the services and not by Prometheus, which knows them as they were some seconds ago.
        services = ("combiner-1", "combiner-2", "modelstore-1", "modelstore-2")
        pages = [await self._operations(service, "GET", "/metrics") for service in services]
        return sum(summed(text, metric, labels) for text in pages)

    async def script(self, *rules: Mapping[str, object]) -> None:
        await self._operations("discovery-mock", "PUT", "/script", json.dumps({"rules": rules}))

    async def scripted(self) -> list[dict[str, Any]]:
        answer = json.loads(await self._operations("discovery-mock", "GET", "/script"))
        rules: list[dict[str, Any]] = answer["rules"]
        return rules

    async def _operations(self, service: str, method: str, path: str, body: str = "") -> str:
        """What a service answers at its port of operations, which is not published."""
        words = (method, path, body, self.token)
        return await self.do("exec", "-T", service, "python", "-c", ASK, *words)

    def save_logs(self, under: str = "") -> None:
        """What the containers said, into files of their names; a container that is made anew forgets it."""
        directory = LOGS / under
        directory.mkdir(parents=True, exist_ok=True)
        for container in self.containers():
            text = self.run("logs", "--no-log-prefix", "--no-color", container["Service"])
            (directory / f"{container['Service']}.log").write_text(text)


@contextmanager
def compose() -> Iterator[Compose]:
    """Up from nothing, and down to nothing."""
    if shutil.which("docker") is None:
        raise AssertionError("--stack=compose needs docker with its compose plugin")
    stack = Compose()
    stack.run("down", "--volumes", "--remove-orphans")
    try:
        stack.up()
        yield stack
    finally:
        stack.save_logs()
        stack.run("down", "--volumes", "--remove-orphans")


def parsed(text: str) -> list[dict[str, Any]]:
    """The JSON lines. A line that is none is an error: logs are read by machines."""
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def summed(exposition: str, metric: str, labels: Mapping[str, str]) -> float:
    """Over all samples of `metric` that have these labels among theirs."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    lines = [line for line in exposition.splitlines() if re.match(rf"{metric}[{{ ]", line)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(word in line for word in wanted))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
