"""The object graph of a combiner, built in one place."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from functools import partial

import structlog

from combiner.adapters.durability import Durability
from combiner.adapters.figures import RedisFigures, keep_looking
from combiner.adapters.limits import Limits
from combiner.adapters.state import RedisState
from combiner.announce import Announcer, Load
from combiner.announced_tls import announced_identity
from combiner.capabilities import EraCapabilities
from combiner.catalog import Catalog
from combiner.clients.asked import AskedClients
from combiner.clients.beats import Beats
from combiner.clients.inbox import Inbox
from combiner.clients.reports import ClientReports
from combiner.clients.statuses import Statuses
from combiner.clients.streams import StreamHub
from combiner.domain.leases import DEFAULT_WINDOWS, OutageGuard, Windows
from combiner.metrics import CombinerMetrics
from combiner.modelstores import Modelstores
from combiner.ports import Event, Shared, StateUnavailable, View
from combiner.rounds.clock import SharedClock
from combiner.rounds.feed import RESYNC, Feed
from combiner.rounds.jobs import JobRunner, Tools
from combiner.rounds.sessions import SessionRunner
from combiner.rounds.trouble import Trouble
from combiner.rounds.worker import Worker
from combiner.rounds.workshop import Workshop
from combiner.servicers.connector import ConnectorServicer
from combiner.servicers.control import ControlServicer, ReducerServicer
from combiner.servicers.events import EventsServicer
from combiner.servicers.operator import ClientsServicer, JobsServicer, ModelsServicer, SessionsServicer
from combiner.servicers.reports import ReportRpcs
from combiner.servicers.streams import CombinerServicer
from combiner.servicers.tokens import TokensServicer
from combiner.servicers.upkeep import REDIS, UpkeepServicer
from combiner.settings import CombinerSettings, replica_name
from combiner.specs import Specs
from combiner.tuning import Tuning
from combiner.upkeep.backup import Backups
from combiner.upkeep.garbage import Garbage
from combiner.upkeep.housekeeper import Housekeeper
from combiner.upkeep.memory import MemoryWatch
from combiner.upkeep.pruning import Pruning
from fedcombiner.access.keeper import TokenKeeper
from fedcombiner.access.policy import decide
from fedcombiner.access.redis_tokens import RedisTokens
from fedcombiner.access.setup import AccessControl
from fedcombiner.modelstorage.scratch import ScratchArea
from fedcombiner.modelstorage.store import STORE_AWAY, ModelStore, check_store
from fedcombiner.modelstorage.stores import make_store
from fedcombiner.servicekit.backoff import retry
from fedcombiner.servicekit.health import Health
from fedcombiner.servicekit.lifecycle import Stop, Supervisor
from fedcombiner.servicekit.metrics import Metrics
from fedcombiner.servicekit.probe import keep_probing
from fedcombiner.servicekit.service import Identify, Service, Started
from fedcombiner.servicekit.tls import ServerIdentity, trust_context, watch_expiry
from fedcombiner.version import __version__
from fedcombiner.wire.registry import Services, service_names

log = structlog.get_logger()

ChooseServices = Callable[["CombinerApp"], Mapping[str, object]]
Wrap = Callable[[Shared, ModelStore], tuple[Shared, ModelStore]]
# FEDn's clients cannot live with INTERNAL on these; a bug there is UNAVAILABLE to them.
CLIENT_SERVICES = tuple(
    f"{package}.{service}"
    for package in ("grpc", "fedn")
    for service in ("Connector", "Combiner", "ModelService")
)


class CombinerApp:
    """A combiner without its ports: `servicers` go onto a server, the rest is started and stopped as one
    component.

    `shared` and `store` are the back ends, already made; whoever made them closes them. The client window is
    also one of the limits of `shared`.
    """

    def __init__(
        self,
        settings: CombinerSettings,
        replica: str,
        shared: Shared,
        store: ModelStore,
        metrics: Metrics,
        health: Health,
        supervisor: Supervisor,
        windows: Windows = DEFAULT_WINDOWS,
    ) -> None:
        self.shared = shared
        self.store = store
        self._health = health
        self._supervisor = supervisor
        self._redis = health.backends.register(REDIS)
        self._objects = health.backends.register("store")
        self._scratch = ScratchArea(settings.scratch)
        self._announcer: Announcer | None = None
        meter = self.meter = CombinerMetrics(metrics)
        guard = OutageGuard(windows.client)
        self._modelstores = Modelstores(settings.modelstore_places)
        self._trouble = Trouble(away=self._modelstores.away)
        self.feed = Feed(shared.log)
        self.hub = StreamHub(replica, shared, self.feed)
        self.beats = Beats(shared.roster)
        self.statuses = Statuses(shared.log)
        self.reports = ClientReports(shared.reports)
        self.report_rpcs = ReportRpcs(self.reports, self.statuses, meter)
        self.inbox = Inbox(
            shared,
            store,
            meter,
            AskedClients(self.feed),
            update_hold_s=settings.update_hold_seconds,
            answer_hold_s=settings.answer_hold_seconds,
        )
        self.tuning = Tuning(shared.settings, settings.max_clients)
        specs = Specs(store)
        self._workshop = Workshop(self._scratch.directory, settings.fold_slots)
        self.catalog = Catalog(shared.models, store, specs, settings.max_model_bytes, self._workshop.capacity)
        clock = SharedClock(shared.log)
        tools = Tools(
            shared,
            store,
            specs,
            self.feed,
            clock,
            self._workshop,
            guard,
            self._trouble,
            meter,
            EraCapabilities(),
            keep_objects=settings.redis_wait > 0,
        )
        self._worker = Worker(
            replica,
            shared,
            self.feed,
            {"job": JobRunner(tools), "session": SessionRunner(shared, self.feed)},
            guard,
            self._trouble,
            clock,
            lease_window=windows.lease,
        )
        self.feed.listen(self._on_event)
        self._garbage = Garbage(shared, store)
        self._memory = MemoryWatch(shared.upkeep)
        self._housekeeper = _housekeeper(settings, replica, shared, self._garbage, meter)
        self.servicers = self._servicers(settings, replica, windows, meter)
        self._watch(meter)

    def _servicers(
        self, settings: CombinerSettings, replica: str, windows: Windows, meter: CombinerMetrics
    ) -> Mapping[str, object]:
        shared = self.shared
        catalog = self.catalog
        return {
            "Connector": ConnectorServicer(
                self.beats, self.statuses, self.inbox, shared.roster, self.tuning, meter, self.report_rpcs
            ),
            "Combiner": CombinerServicer(
                settings.name, self.hub, self.inbox, shared.tasks, meter, self.report_rpcs
            ),
            "Control": ControlServicer(settings.name, shared, catalog, self.tuning),
            "Reducer": ReducerServicer(settings.name, shared),
            "Jobs": JobsServicer(shared, self.feed),
            "Sessions": SessionsServicer(shared, self.feed, catalog),
            "Models": ModelsServicer(shared, catalog),
            "Clients": ClientsServicer(shared, round(windows.client * 1000)),
            "Events": EventsServicer(shared.history),
            "Upkeep": UpkeepServicer(
                settings.name,
                replica,
                shared,
                self._health,
                self._garbage,
                Pruning(shared, self.store),
                Backups(shared, self.store),
            ),
        }

    def _watch(self, meter: CombinerMetrics) -> None:
        meter.watch("streams", "Open client streams of this replica.", lambda: len(self.hub))
        meter.watch("active_clients", "Clients with a stream at this replica.", self.hub.clients)
        meter.watch(
            "streams_unregistered", "Openings and closings not in Redis yet.", lambda: self.hub.unregistered
        )
        meter.watch("works", "Jobs and sessions that this replica runs.", lambda: self._worker.works)
        meter.watch("answers_pending", "Answers that are not recorded yet.", lambda: len(self.inbox))
        meter.watch(
            "answers_given_up", "Answers dropped because too many waited.", lambda: self.inbox.given_up
        )
        meter.watch(
            "statuses_dropped", "Status messages dropped while Redis was away.", lambda: self.statuses.dropped
        )
        meter.watch(
            "removed_early",
            "Ended jobs and sessions that were removed because Redis was filling, by all replicas.",
            lambda: self._memory.memory.removed_early,
        )
        meter.watch(
            "client_names_refused",
            "Times that a new client name was not noted because the roster was full, at all replicas.",
            lambda: self._memory.memory.names_refused,
        )
        meter.watch(
            "reports_dropped",
            "Reports dropped while Redis was away.",
            lambda: self.reports.dropped,
        )
        for name, what in (("cpu_usage", "CPU use"), ("memory_usage", "memory use")):
            meter.watch(
                f"clients_{name}_percent_mean",
                f"Mean {what} of the clients that told it here lately.",
                partial(self.reports.mean, name),
            )
            meter.watch(
                f"clients_{name}_percent_highest",
                f"Highest {what} of the clients that told it here lately.",
                partial(self.reports.highest, name),
            )

    def announce(self, announcer: Announcer | None) -> None:
        """Announce this combiner from its start on."""
        self._announcer = announcer
        if announcer is not None:
            announcer.load = self._load

    def status(self) -> Mapping[str, object]:
        """For /statusz."""
        return {
            "streams": len(self.hub),
            "clients": self.hub.clients(),
            "works": self._worker.works,
            "answers_pending": len(self.inbox),
            "answers_given_up": self.inbox.given_up,
            "redis_memory": self._memory.status(),
        }

    async def start(self) -> None:
        """Begin everything."""
        await asyncio.to_thread(self._scratch.open)
        spawn = self._supervisor.spawn
        spawn("feed", self.feed.run())
        spawn("streams", self.hub.run())
        spawn("heartbeats", self.beats.run())
        spawn("statuses", self.statuses.run())
        spawn("reports", self.reports.run())
        # A step that looks at the schema: with state of a newer version this process is never ready.
        spawn("probe Redis", keep_probing(self._redis, self.shared.settings.get, away=StateUnavailable))
        spawn("probe the store", keep_probing(self._objects, self._check_store, away=STORE_AWAY))
        spawn("work", self._worker.run())
        spawn("look for trouble", self._trouble.keep_looking())
        spawn("memory of Redis", self._memory.run())
        if self._housekeeper is not None:
            spawn("house-keeping", self._housekeeper.run())
        if self._announcer is not None:
            spawn("announce", self._announcer.run())

    async def _check_store(self) -> None:
        try:
            await check_store(self.store)
        except STORE_AWAY:
            self._trouble.note()
            raise

    async def _recover_models(self) -> None:
        found = await retry(self.catalog.recover, on=(StateUnavailable, *STORE_AWAY), timeout=None)
        if found:
            log.error(
                "Redis was lost: jobs, sessions and the newest model are lost; the store's models are listed",
                models=found,
            )

    async def _load(self) -> Load | None:
        try:
            active = len(await self.shared.roster.active(View.ALL))
        except StateUnavailable:
            return None
        return Load(active, self.tuning.max_clients)

    def _on_event(self, event: Event) -> None:
        if event.what == RESYNC:
            # The first one, and whenever the log was lost, perhaps with everything else.
            self._supervisor.spawn("recover models", self._recover_models())
        if self.tuning.concerns(event):
            self._supervisor.spawn("load settings", self._load_tuning())

    async def _load_tuning(self) -> None:
        try:
            await self.tuning.load()
        except StateUnavailable as error:
            log.warning("settings could not be read; the old ones stay", error=str(error))

    async def hand_over(self) -> None:
        """Give the work to other replicas, while calls and streams go on."""
        try:
            await self._worker.drain()
        except StateUnavailable as error:
            log.warning("leases could not be given back; the others will notice", error=str(error))

    async def drain(self) -> None:
        """Before the ports close: end the streams, and record what is still on its way."""
        self.hub.drain()
        try:
            await self.beats.flush()
        except StateUnavailable as error:
            log.warning("the last heartbeats could not be recorded", error=str(error))
        await self.hub.settle()
        await self.inbox.settle(timeout=2.0)

    async def dismiss(self) -> None:
        """The ports close: streams that were refused since the drain are held no longer."""
        self.hub.leave()

    async def stop(self) -> None:
        """After `drain`, when no call and no background task runs any more."""
        await self.inbox.close()
        await self._modelstores.aclose()
        self._workshop.close()
        await asyncio.to_thread(self._scratch.close)


def _housekeeper(
    settings: CombinerSettings, replica: str, shared: Shared, garbage: Garbage, meter: CombinerMetrics
) -> Housekeeper | None:
    every = settings.housekeeping_seconds
    return Housekeeper(replica, shared.upkeep, garbage, every, meter.removed) if every else None


def make_announcer(settings: CombinerSettings, trust: ssl.SSLContext | None = None) -> Announcer | None:
    """None without DISCOVERY_URL. `trust`: whom to believe there; if None, those that the settings name.

    Raises:
        StartupError: ADVERTISE or DISCOVERY_CA_FILE cannot be.
    """
    if not settings.discovery_url:
        return None
    return Announcer(
        settings.discovery_url,
        settings.name,
        settings.advertise,
        token=settings.discovery_token.get_secret_value(),
        secure=settings.advertises_tls,
        trust=trust or trust_context(settings.discovery_ca_file, "DISCOVERY_CA_FILE"),
        fqdn=settings.advertise_fqdn or None,
    )


async def serve(
    settings: CombinerSettings,
    stop: Stop,
    started: Started = lambda _port, _metrics_port: None,
    services: ChooseServices = lambda app: app.servicers,
    *,
    wrap: Wrap = lambda shared, store: (shared, store),
    discovery_trust: ssl.SSLContext | None = None,
) -> None:
    """Run a combiner until the stop. `started` is told its ports as soon as it takes calls.

    `services` chooses what is served, by the names of the services; it is called once, in the running loop.
    `wrap` may put something between the combiner and its back ends. `discovery_trust`: whom to believe at an
    https DISCOVERY_URL; if None, those that the settings name.

    Raises:
        StartupError: a port is taken, a setting cannot be, or everybody could call everything.
    """
    announcer = make_announcer(settings, discovery_trust)
    limits = Limits(max_running_jobs=settings.max_running_jobs)
    shared = RedisState(settings.redis_address, limits=limits, wait=settings.redis_wait)
    tokens = RedisTokens(settings.redis_address)
    policy = decide(settings, settings.listening)
    service = Service(
        "combiner",
        __version__,
        settings,
        stop,
        lambda metrics, health: AccessControl(policy, metrics, health, tokens),
    )
    store = make_store(settings)
    app = CombinerApp(
        settings,
        replica_name(),
        *wrap(shared, store),
        service.metrics,
        service.health,
        service.supervisor,
    )
    app.announce(announcer)
    service.owns("state", shared.aclose)
    service.owns("tokens", tokens.aclose)
    service.owns("store", store.close)
    durability = Durability(service.metrics, settings.redis_wait)
    figures = RedisFigures(service.metrics)
    service.task("figures of Redis", lambda: keep_looking(shared.info, figures.take, durability.take))
    service.section("redis", durability.status)
    identify = None
    if announcer is not None and settings.tls_from_discovery:
        identify = partial(_announced, announcer, service.metrics)
    compose(service, app, {**services(app), **tokens_service(tokens, service.access)}, identify=identify)
    await service.run(started)


def compose(
    service: Service[AccessControl],
    app: CombinerApp,
    servicers: Mapping[str, object],
    *,
    identify: Identify | None = None,
) -> None:
    """Make the combiner a part of the service, with these servicers for its clients and operators."""
    service.rpc(
        Services(servicers),
        names=service_names(servicers),
        unavailable_on_bug=CLIENT_SERVICES,
        identify=identify,
    )
    service.section("combiner", app.status)
    service.component("combiner", app)
    service.on_drain("work", app.hand_over)
    service.before_close("streams", app.drain)
    service.before_close("refused streams", app.dismiss)


def tokens_service(tokens: RedisTokens, access: AccessControl) -> Mapping[str, object]:
    keeper = TokenKeeper(tokens, access.tokens.refresh)
    return {"Tokens": TokensServicer(keeper, enforced=access.policy.enforced)}


async def _announced(announcer: Announcer, metrics: Metrics) -> ServerIdentity:
    identity = await announced_identity(announcer)
    watch_expiry(identity, metrics)
    return identity
