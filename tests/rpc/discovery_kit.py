"""A running discovery with a hand-driven clock, and an HTTP client for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from discovery_mock.app import DiscoveryApp
from discovery_mock.registry import Combiner
from discovery_mock.settings import DiscoverySettings

from fedcombiner.modelstorage.disk import DiskStore
from fedcombiner.modelstorage.store import ModelStore
from fedcombiner.servicekit.http import HttpServer
from fedcombiner.servicekit.metrics import Metrics
from tests.packages_kit import archive_of

ANNOUNCE = {
    "combiner_id": "combiner",
    "address": "gateway",
    "fqdn": None,
    "port": 12080,
    "secure_grpc": False,
}
CLIENT = {"client_id": "client1", "preferred_combiner": False}


class HandWitness:
    """Knows of the clients in `heard` that they were heard of some seconds ago."""

    def __init__(self) -> None:
        self.heard: dict[str, float] = {}
        self.asked: list[tuple[str, str]] = []

    async def heard_lately(self, combiner: Combiner, client: str, seconds: float) -> bool:
        self.asked.append((combiner.name, client))
        return client in self.heard and self.heard[client] <= seconds


class Discovery:
    """Use `running`; then `http` is a client for its public port at `url`."""

    def __init__(self, directory: Path, *, store: ModelStore | None = None, **settings: object) -> None:
        self.now = 0.0
        self.metrics = Metrics()
        self.witness = HandWitness()
        self.store = store or DiskStore(directory / "store")
        made = DiscoverySettings(**{"scratch": directory / "scratch", **settings})
        self.app = DiscoveryApp(made, self.metrics, self.store, witness=self.witness, clock=lambda: self.now)

    async def announce(self, load: Mapping[str, int] | None = None, **changes: object) -> httpx.Response:
        """`load`: numbers for the headers that begin with combiner-."""
        headers = {f"combiner-{name}": str(value) for name, value in (load or {}).items()}
        return await self.http.post("/add_combiner", json={**ANNOUNCE, **changes}, headers=headers)

    async def assign(self, **changes: object) -> httpx.Response:
        """As a client of 0.6 asks."""
        headers = {"Authorization": "Token None"}
        return await self.http.post("/add_client", json={**CLIENT, **changes}, headers=headers)

    async def put_package(self, train: bytes = b"print(1)", *, name: str = "p", activate: bool = True) -> Any:
        put = await self.http.post("/packages", params={"name": name}, content=archive_of(train))
        assert put.status_code == 201, put.text
        if activate:
            activated = await self.http.post(f"/packages/{put.json()['id']}/activate")
            assert activated.status_code == 200, activated.text
        return put.json()

    @asynccontextmanager
    async def running(self, *, start_store: bool = True) -> AsyncIterator[Discovery]:
        server = HttpServer(self.app.app, "127.0.0.1", 0)
        if start_store:
            await self.store.start()
        await self.app.start()
        await server.start()
        self.url = f"http://127.0.0.1:{server.port}"
        try:
            async with httpx.AsyncClient(base_url=self.url, trust_env=False, verify=False) as self.http:
                yield self
        finally:
            await server.stop()
            await self.app.stop()
            await self.store.close()
