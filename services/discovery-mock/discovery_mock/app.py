"""The object graph of a discovery, built in one place."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from discovery_mock.catalog import PackageCatalog
from discovery_mock.clients import ClientDesk
from discovery_mock.combiners import CombinerDesk, PairFor
from discovery_mock.helpers import HelperChoice, Helpers, Witness
from discovery_mock.messages import not_yet
from discovery_mock.packages import PackageDesk
from discovery_mock.pairs import CombinerPair
from discovery_mock.registry import CombinerRegistry
from discovery_mock.script import Script, Scripted
from discovery_mock.settings import DiscoverySettings
from discovery_mock.web import TRY_LATER, Endpoints, SingleSlashes, in_json
from discovery_mock.witness import AskingWitness
from fedcombiner.access.http import refusal
from fedcombiner.access.policy import decide
from fedcombiner.access.redis_tokens import reader_of
from fedcombiner.access.roles import Role
from fedcombiner.access.setup import AccessControl
from fedcombiner.access.table import Access
from fedcombiner.client.trust import Trust
from fedcombiner.modelstorage.scratch import ScratchArea
from fedcombiner.modelstorage.store import STORE_AWAY, ModelStore, check_store
from fedcombiner.modelstorage.stores import make_store
from fedcombiner.packages.archive import PackageLimits
from fedcombiner.servicekit.errors import ServiceError, StartupError, Unavailable
from fedcombiner.servicekit.lifecycle import Stop
from fedcombiner.servicekit.metrics import Metrics
from fedcombiner.servicekit.service import Service, Started
from fedcombiner.version import __version__

REQUESTS = ("add_combiner", "add_client", "package", "checksum", "client_config", "packages")


class DiscoveryApp:
    """Plays FEDn's controller for combiners that announce themselves and clients that look for one.

    `app` is the ASGI application of its public port, behind `access` (None: for everybody). Compute packages
    are in `store`, which whoever made it starts and closes; everything else is in memory: combiners announce
    themselves every 30 s, so a restarted discovery soon knows them again. A component.

    Raises:
        StartupError: a setting cannot be.
    """

    def __init__(
        self,
        settings: DiscoverySettings,
        metrics: Metrics,
        store: ModelStore,
        access: AccessControl | None = None,
        *,
        witness: Witness | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = CombinerRegistry(settings.combiner_ttl, clock)
        self._scratch = ScratchArea(settings.scratch)
        self.script = Script()
        self.catalog = PackageCatalog(store, clock=clock)
        helpers = Helpers(settings.helper_old, settings.helper_new, settings.helper_by_name)
        trust = _trust(settings.combiner_ca_file)
        asked = witness or AskingWitness(settings.combiner_token.get_secret_value(), trust)
        self._combiners = CombinerDesk(self._registry, settings.package, _pair_for(settings))
        self._clients = ClientDesk(
            self._registry,
            self.catalog,
            HelperChoice(helpers, asked, clock=clock),
            package=settings.package,
            certificate=_in_base64(trust.authorities),
        )
        limits = PackageLimits(archive_bytes=settings.max_package_bytes)
        self._packages = PackageDesk(
            self.catalog,
            self._scratch,
            limits,
            idle=settings.idle_seconds,
            patience=settings.store_seconds,
        )
        metrics.gauge("discovery_combiners", "Combiners that announce themselves.").set_function(
            lambda: len(self._registry.live())
        )
        site = Starlette(
            routes=self._routes(Endpoints(metrics, REQUESTS)), exception_handlers={HTTPException: in_json}
        )
        guarded = site if access is None else access.protect(site, "discovery", partial(_refusal, settings))
        self.app: ASGIApp = SingleSlashes(Scripted(guarded, self.script))

    def status(self) -> Mapping[str, object]:
        """For /statusz."""
        return {
            "combiners": {
                combiner.name: {
                    "address": f"{combiner.address}:{combiner.port}",
                    "clients": self._registry.load(combiner.name),
                }
                for combiner in self._registry.live()
            }
        }

    async def start(self) -> None:
        await asyncio.to_thread(self._scratch.open)

    async def stop(self) -> None:
        await asyncio.to_thread(self._scratch.close)

    def _routes(self, endpoints: Endpoints) -> Sequence[BaseRoute]:
        route, clients, packages = endpoints.route, self._clients, self._packages
        return [
            route("/add_combiner", "add_combiner", self._combiners.add_combiner, "POST"),
            # 0.5, then 0.6 to 0.20, then 0.21 and newer.
            route("/assign", "add_client", clients.assign),
            route("/context", "package", packages.download),
            route("/checksum", "checksum", packages.checksum),
            route("/add_client", "add_client", clients.add_client, "POST"),
            route("/download_package", "package", packages.download),
            route("/get_package_checksum", "checksum", packages.checksum),
            route("/api/v1/clients/add", "add_client", clients.add, "POST"),
            route("/api/v1/packages/download", "package", packages.download),
            route("/api/v1/packages/checksum", "checksum", packages.checksum),
            route("/get_client_config", "client_config", packages.client_config),
            # Ours, for operators.
            route("/packages", "packages", packages.list),
            route("/packages", "packages", packages.put, "POST"),
            route("/packages/{package}", "packages", packages.get),
            route("/packages/{package}/activate", "packages", packages.activate, "POST"),
        ]


def _trust(authorities: Path | None) -> Trust:
    try:
        return Trust() if authorities is None else Trust.in_file(authorities)
    except (OSError, ValueError) as error:
        raise StartupError(f"COMBINER_CA_FILE={authorities}: {error}") from None


def _in_base64(pem: bytes | None) -> str | None:
    return None if pem is None else base64.b64encode(pem).decode()


def _refusal(settings: DiscoverySettings, error: ServiceError, access: Access) -> Response:
    """Clients of 0.17 and later end at anything but a retry, so that is what they and combiners are told
    while their tokens cannot be checked."""
    if isinstance(error, Unavailable) and access.roles & {Role.CLIENT, Role.COMBINER}:
        return JSONResponse(not_yet(error.message, settings.package), TRY_LATER)
    return refusal(error, access)


def _pair_for(settings: DiscoverySettings) -> PairFor:
    if settings.combiner_cert_file is None or settings.combiner_key_file is None:
        return lambda _request: None
    return CombinerPair(settings.combiner_cert_file, settings.combiner_key_file).for_sender


async def serve(
    settings: DiscoverySettings, stop: Stop, started: Started = lambda _port, _metrics_port: None
) -> None:
    """Run a discovery until the stop. `started` is told its ports as soon as it answers.

    Raises:
        StartupError: a port is taken, a setting cannot be, or everybody could call everything.
    """
    tokens = reader_of(settings)
    policy = decide(settings, settings.listening)
    service = Service(
        "discovery-mock",
        __version__,
        settings,
        stop,
        lambda metrics, health: AccessControl(policy, metrics, health, tokens),
        # Clients of 0.33 end when there is no discovery, and are told to come again as long as there is no
        # package, or no way to check their tokens.
        ready_at_once=True,
    )
    store = make_store(settings)
    service.owns("store", store.close)
    if tokens is not None:
        service.owns("tokens", tokens.aclose)
    service.backend("store", partial(check_store, store), away=STORE_AWAY)
    discovery = DiscoveryApp(settings, service.metrics, store, service.access)
    compose(service, discovery)
    await service.run(started)


def compose(
    service: Service[AccessControl], app: DiscoveryApp, port: int | None = None, *, setting: str = "PORT"
) -> None:
    """Make the discovery a part of the service, on its port or another one that the `setting` names."""
    service.component("discovery", app)
    service.section("discovery", app.status, app.script.routes)
    service.http(app.app, port, setting=setting)
