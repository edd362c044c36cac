"""The stack of the fault tests with a discovery, and taps on what clients ask of it and of the gateway."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import httpx
import psutil

from fedcombiner.client.packages import PackagesClient
from fedcombiner.packages.archive import PackageLimits
from fedcombiner.packages.packing import pack
from tests.faults.processes import Program, free_address
from tests.faults.stack import ROOT, Stack, haproxy_binary, path_to
from tests.faults.wires import Wire
from tests.interop.taps import GrpcTap, HttpTap

PACKAGE: Final = Path(__file__).parent / "package"
LIMITS: Final = PackageLimits()


class InteropStack(Stack):
    """Attributes:
    assignments, calls: what clients ask of the discovery, and of the gateway.
    clients: the processes that are told apart there, by name; whoever starts some puts them in.
    """

    prefix = "fc-interop-"

    def __init__(self) -> None:
        super().__init__()
        self.clients: dict[str, Program] = {}
        self._discovery = free_address()
        self._ports: dict[str, str] = {}
        self._health: dict[str, str] = {}

    @property
    def discovery(self) -> str:
        """Where clients ask."""
        return self.assignments.address

    async def _start(self) -> None:
        if haproxy_binary() is None:
            raise AssertionError("there is no HAProxy: apt-get install haproxy")
        tap = HttpTap(self._discovery, self._owner)
        self.assignments = await self._stack.enter_async_context(tap)
        await super()._start()

    async def _environment(self, name: str, role: str, port: str, health: str) -> Mapping[str, str]:
        made = await super()._environment(name, role, port, health)
        self._ports[name], self._health[name] = port, health
        if role != "combiner":
            return made
        if not hasattr(self, "calls"):
            tap = GrpcTap(self.gateway, self._owner)
            self.calls = await self._stack.enter_async_context(tap)
            self._add(self._discovery_program())
        return {**made, "ADVERTISE": self.calls.address, "DISCOVERY_URL": f"http://{self._discovery}"}

    def _discovery_program(self) -> Program:
        health = free_address()
        env = {
            "HOST": "127.0.0.1",
            "PORT": self._discovery.rpartition(":")[2],
            "METRICS_HOST": "127.0.0.1",
            "METRICS_PORT": health.rpartition(":")[2],
            "DATA": str(self.directory / "packages"),
            "SCRATCH": str(self.directory / "scratch-packages"),
            **path_to(ROOT),
        }
        argv = [sys.executable, "-m", "discovery_mock"]
        return Program("discovery", argv, self.directory, f"http://{health}/readyz", env)

    def _owner(self, port: int) -> str:
        for name, client in self.clients.items():
            if client.alive and port in _ports(client.pid):
                return name
        return "somebody else"

    async def put_package(self) -> None:
        archive = pack(PACKAGE, self.directory / "package.tar.gz", LIMITS)
        async with PackagesClient(f"http://{self._discovery}") as packages:
            await packages.put(archive, "interop")
            await packages.activate("interop")

    def hold(self, name: str) -> None:
        """Nothing gets through to what this program serves, and no connection breaks; its checks go on."""
        for wire in self._served_by(name):
            wire.hold()

    def release(self, name: str) -> None:
        for wire in self._served_by(name):
            wire.release()

    def _served_by(self, name: str) -> list[Wire]:
        found = [wire for wire in self.wires[name] if wire.target == self._ports.get(name, wire.target)]
        assert found, f"nothing leads to {name}"
        return found

    async def uploads(self) -> int:
        """Transfers that are open at the gateway."""
        return await self._of_gateway('haproxy_backend_current_sessions{proxy="modelstores"}')

    async def combiners_up(self) -> int:
        """As the gateway sees it."""
        return await self._of_gateway('haproxy_backend_active_servers{proxy="combiners"}')

    async def serving(self, name: str, method: str) -> int:
        """Calls of a method that are open at this replica."""
        page = await self._page(f"http://{self._health[name]}/metrics")
        rows = [row for row in page if row.startswith("fedcombiner_rpc_in_flight{") and f'"{method}"' in row]
        # It is not there before the first call.
        return sum(int(float(row.rpartition(" ")[2])) for row in rows)

    async def _of_gateway(self, metric: str) -> int:
        page = await self._page(f"http://{self.gateway_operations}/metrics")
        [row] = [row for row in page if row.startswith(f"{metric} ")]
        return int(float(row.rpartition(" ")[2]))

    async def _page(self, url: str) -> list[str]:
        async with httpx.AsyncClient(trust_env=False) as http:
            return (await http.get(url)).text.splitlines()


def _ports(pid: int) -> set[int]:
    try:
        return {connection.laddr.port for connection in psutil.Process(pid).net_connections("tcp")}
    except psutil.NoSuchProcess:
        return set()
