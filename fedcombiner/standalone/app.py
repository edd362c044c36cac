"""The whole stack in one process: composition only; no service knows that it runs here.

gRPC of the combiner and the modelstore on one port, discovery on another, metrics and health on a third; an
embedded Redis unless another one is named, and models on the local disk unless the settings say otherwise.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from combiner import app as combiner_app
from combiner.adapters.durability import Durability
from combiner.adapters.figures import keep_looking
from combiner.adapters.state import RedisState
from combiner.app import CombinerApp, make_announcer
from combiner.settings import CombinerSettings, replica_name
from discovery_mock import app as discovery_app
from discovery_mock.app import DiscoveryApp
from discovery_mock.settings import DiscoverySettings
from modelstore.app import build_servicer
from modelstore.settings import ModelstoreSettings
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from fedcombiner.access.policy import decide
from fedcombiner.access.redis_tokens import RedisTokens
from fedcombiner.access.roles import Role
from fedcombiner.access.secret import new_token
from fedcombiner.access.setup import AccessControl
from fedcombiner.modelstorage.stores import make_store
from fedcombiner.servicekit.binding import host_port
from fedcombiner.servicekit.lifecycle import Stop
from fedcombiner.servicekit.service import Service
from fedcombiner.servicekit.settings import ServiceSettings
from fedcombiner.servicekit.tls import pinned_context
from fedcombiner.standalone.redis_child import LEAST_MIB, RedisChild
from fedcombiner.standalone.witness import RosterWitness
from fedcombiner.version import __version__


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
    def ports(self) -> ServiceSettings:
        """Of gRPC and of metrics."""
        return ServiceSettings(
            host=self.host,
            port=self.port,
            metrics_host=self.host,
            metrics_port=self.metrics_port,
            drain_seconds=self.models.drain_seconds,
            tls_cert_file=self.models.tls_cert_file,
            tls_key_file=self.models.tls_key_file,
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
        self._token = new_token()  # of our combiner, for our discovery
        self._service: Service[AccessControl] | None = None
        self.address = ""
        self.discovery_url = ""
        self.metrics_url = ""

    async def __aenter__(self) -> Self:
        service = self._compose()
        await service.__aenter__()
        self._service = service
        self.metrics_url = f"http://{host_port(self._settings.host, service.operations_port)}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._service is not None:
            await self._service.__aexit__(kind, error, trace)

    async def wait_stopped(self) -> None:
        """Until somebody sets the stop: a signal, or a part that failed."""
        await self._stop.wait()

    def _compose(self) -> Service[AccessControl]:
        settings = self._settings
        child = self._redis_child()
        redis_url = child.url if child else settings.redis_url or ""
        tokens, shared = RedisTokens(redis_url), RedisState(redis_url)
        policy = decide(settings.models, {"HOST": settings.host}).also(
            self._token, Role.COMBINER, "standalone"
        )
        service = Service(
            "standalone",
            __version__,
            settings.ports,
            self._stop,
            lambda metrics, health: AccessControl(policy, metrics, health, tokens),
            calls_wait=True,
        )
        store = make_store(settings.models)
        if child is not None:
            service.component("embedded Redis", child)
        service.owns("tokens", tokens.aclose)
        service.owns("store", store.close)
        service.owns("state", shared.aclose)
        discovery = DiscoveryApp(
            settings.discovering, service.metrics, store, service.access, witness=RosterWitness(shared.roster)
        )
        discovery_app.compose(service, discovery, settings.discovery_port, setting="DISCOVERY_PORT")
        combiner = CombinerApp(
            self._combiner_settings(),
            replica_name(),
            shared,
            store,
            service.metrics,
            service.health,
            service.supervisor,
        )
        durability = Durability(service.metrics)
        service.task("figures of Redis", lambda: keep_looking(shared.info, durability.take))
        service.section("redis", durability.status)
        servicers = {
            **combiner.servicers,
            "ModelService": build_servicer(settings.models, store, service.metrics),
            **combiner_app.tokens_service(tokens, service.access),
        }
        combiner_app.compose(service, combiner, servicers)
        service.when_bound(lambda: self._announce(service, combiner))
        return service

    def _announce(self, service: Service[AccessControl], combiner: CombinerApp) -> None:
        """Let the combiner announce itself to the discovery of this process."""
        host, identity = self._settings.host, service.identity
        self.address = host_port(host, service.port)
        self.discovery_url = (
            f"{'http' if identity is None else 'https'}://{host_port(host, service.http_port)}"
        )
        # The certificate need not be for the address that we listen on.
        trust = None if identity is None else pinned_context(identity)
        own = self._combiner_settings(
            advertise=self._settings.advertise or self.address, discovery_url=self.discovery_url
        )
        combiner.announce(make_announcer(own, trust))

    def _redis_child(self) -> RedisChild | None:
        if self._settings.redis_url:
            return None
        memory = self._settings.redis_memory_mib
        return RedisChild(self._settings.data_dir, stop=self._stop, memory_mib=memory)

    def _combiner_settings(self, *, advertise: str = "", discovery_url: str = "") -> CombinerSettings:
        return CombinerSettings(
            scratch=self._settings.models.scratch,
            max_model_bytes=self._settings.models.max_model_bytes,
            tls_cert_file=self._settings.models.tls_cert_file,
            tls_key_file=self._settings.models.tls_key_file,
            discovery_token=SecretStr(self._token),
            advertise=advertise,
            discovery_url=discovery_url,
        )
