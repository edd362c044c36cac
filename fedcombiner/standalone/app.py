"""The whole stack in one process: composition only; no service knows that it runs here.

gRPC of the combiner and the modelstore on one port, discovery on another, metrics and health on a third; an
embedded Redis unless another one is named, and models on the local disk unless the settings say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog
from combiner.adapters.durability import Durability
from combiner.adapters.figures import keep_looking
from combiner.adapters.state import RedisState
from combiner.app import CLIENT_SERVICES, CombinerApp, make_announcer
from combiner.servicers.tokens import TokensServicer
from combiner.settings import CombinerSettings, replica_name
from discovery_mock.app import DiscoveryApp
from discovery_mock.settings import DiscoverySettings
from modelstore.app import build_servicer
from modelstore.settings import ModelstoreSettings
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from fedcombiner.access.keeper import TokenKeeper
from fedcombiner.access.policy import decide
from fedcombiner.access.redis_tokens import RedisTokens
from fedcombiner.access.roles import Role
from fedcombiner.access.secret import new_token
from fedcombiner.access.setup import AccessControl
from fedcombiner.modelstorage.store import ModelStore
from fedcombiner.modelstorage.stores import make_store
from fedcombiner.servicekit.health import Health
from fedcombiner.servicekit.http import HttpServer, operations_app
from fedcombiner.servicekit.lifecycle import Lifecycle, Stop, Supervisor
from fedcombiner.servicekit.metrics import LoopLag, Metrics
from fedcombiner.servicekit.rpc import RpcServer, add_reflection, bind, build_server
from fedcombiner.servicekit.tls import load_identity, pinned_context
from fedcombiner.standalone.redis_child import LEAST_MIB, RedisChild
from fedcombiner.standalone.witness import RosterWitness
from fedcombiner.version import __version__
from fedcombiner.wire.registry import add_services, service_names

log = structlog.get_logger()


class StandaloneSettings(BaseModel):
    """Ports of 0 are any free ones. `data_dir` keeps everything: `redis/`, `models/`, `scratch/`.

    `redis_memory_mib`: the `maxmemory` of the embedded Redis; None: a quarter of what this process may use.

    `modelstore` says where models are and how large they may be, its ports aside; None: on the disk in
    `data_dir`. Its TLS files are for both ports of clients, its settings about tokens for all ports.
    `discovery` says what clients are told, its ports and its store aside: compute packages are where models
    are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 12080
    discovery_port: int = 8092
    metrics_port: int = 9464
    redis_url: str | None = None
    redis_memory_mib: int | None = Field(None, ge=LEAST_MIB)
    advertise: str = ""
    modelstore: ModelstoreSettings | None = None
    discovery: DiscoverySettings | None = None

    @property
    def models(self) -> ModelstoreSettings:
        return self.modelstore or ModelstoreSettings(
            data=self.data_dir / "models", scratch=self.data_dir / "scratch"
        )

    @property
    def discovering(self) -> DiscoverySettings:
        return self.discovery or DiscoverySettings(scratch=self.models.scratch)


class Standalone:
    """Use as `async with`.

    The addresses are known inside the block; leaving it stops everything, in order.
    """

    def __init__(self, settings: StandaloneSettings, stop: Stop | None = None) -> None:
        self._settings = settings
        self._stop = stop or Stop()
        self._stack = AsyncExitStack()
        self._token = new_token()  # of our combiner, for our discovery
        self.address = ""
        self.discovery_url = ""
        self.metrics_url = ""

    async def __aenter__(self) -> Self:
        try:
            await self._start(await self._stack.enter_async_context(Lifecycle(self._stop)))
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def wait_stopped(self) -> None:
        """Until somebody sets the stop: a signal, or a part that failed."""
        await self._stop.wait()

    async def _start(self, lifecycle: Lifecycle) -> None:
        settings = self._settings
        metrics = Metrics()
        health = Health(metrics)
        supervisor = Supervisor(self._stop)
        identity = load_identity(settings.models.tls_cert_file, settings.models.tls_key_file, metrics)
        policy = decide(settings.models, {"HOST": settings.host}).also(
            self._token, Role.COMBINER, "standalone"
        )
        redis_url = await self._redis_url(lifecycle)
        tokens = RedisTokens(redis_url)
        lifecycle.on_stop("tokens", tokens.aclose)
        access = AccessControl(policy, metrics, health, tokens)
        server = build_server(
            metrics.rpc, unavailable_on_bug=CLIENT_SERVICES, interceptors=access.interceptors
        )
        port = bind(server, settings.host, settings.port, identity=identity)
        self.address = f"{settings.host}:{port}"
        await lifecycle.start("health", health)
        await lifecycle.start("loop lag", LoopLag(metrics))
        store = make_store(settings.models)
        lifecycle.on_stop("store", store.close)
        shared = RedisState(redis_url)
        lifecycle.on_stop("state", shared.aclose)
        discovery = DiscoveryApp(
            settings.discovering, metrics, store, access, witness=RosterWitness(shared.roster)
        )
        await lifecycle.start("discovery", discovery)
        public = HttpServer(
            discovery.app,
            settings.host,
            settings.discovery_port,
            setting="DISCOVERY_PORT",
            identity=identity,
        )
        await lifecycle.start("discovery's port", public)
        self.discovery_url = f"{'http' if identity is None else 'https'}://{settings.host}:{public.port}"
        own = self._combiner_settings()
        # The certificate need not be for the address that we listen on.
        announcer = make_announcer(own, None if identity is None else pinned_context(identity))
        combiner = CombinerApp(
            own, replica_name(), shared, store, metrics, health, supervisor, announcer=announcer
        )
        durability = Durability(metrics)
        supervisor.spawn("figures of Redis", keep_looking(shared.info, durability.take))
        keeper = TokenKeeper(tokens, access.tokens.refresh)
        servicers = {
            **self._servicers(combiner, store, metrics),
            "Tokens": TokensServicer(keeper, enforced=policy.enforced),
        }
        add_services(server, servicers)
        health.add_to(server)
        add_reflection(server, service_names(servicers))
        operations = operations_app(
            service="standalone",
            version=__version__,
            metrics=metrics,
            health=health,
            sections={
                "combiner": combiner.status,
                "discovery": discovery.status,
                "redis": durability.status,
            },
            routes=discovery.script.routes,
        )
        private = access.protect(operations, "operations")
        http = HttpServer(private, settings.host, settings.metrics_port, setting="METRICS_PORT")
        await lifecycle.start("operations", http)
        self.metrics_url = f"http://{settings.host}:{http.port}"
        await lifecycle.start("combiner", combiner)
        await lifecycle.start("background tasks", supervisor)
        access.start(supervisor)
        await self._stop.guard(health.backends.first_contact())
        await lifecycle.start("rpc", RpcServer(server, grace=1.0))
        lifecycle.on_stop("drain", combiner.drain)

    async def _redis_url(self, lifecycle: Lifecycle) -> str:
        if self._settings.redis_url:
            return self._settings.redis_url
        child = RedisChild(
            self._settings.data_dir, stop=self._stop, memory_mib=self._settings.redis_memory_mib
        )
        await lifecycle.start("embedded Redis", child)
        return child.url

    def _combiner_settings(self) -> CombinerSettings:
        return CombinerSettings(
            scratch=self._settings.models.scratch,
            max_model_bytes=self._settings.models.max_model_bytes,
            advertise=self._settings.advertise or self.address,
            discovery_url=self.discovery_url,
            tls_cert_file=self._settings.models.tls_cert_file,
            tls_key_file=self._settings.models.tls_key_file,
            discovery_token=SecretStr(self._token),
        )

    def _servicers(self, combiner: CombinerApp, store: ModelStore, metrics: Metrics) -> Mapping[str, object]:
        return {
            **combiner.servicers,
            "ModelService": build_servicer(self._settings.models, store, metrics),
        }
