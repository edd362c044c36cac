"""The object graph of a combiner, built in one place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import structlog

from combiner.announce import Announcer
from combiner.beats import Beats
from combiner.catalog import Catalog
from combiner.domain.leases import CLIENT_WINDOW, OutageGuard
from combiner.inbox import Inbox
from combiner.metrics import CombinerMetrics
from combiner.ports import Event, Shared, StateUnavailable
from combiner.rounds.clock import SharedClock
from combiner.rounds.feed import Feed
from combiner.rounds.folding import Workshop
from combiner.rounds.jobs import JobRunner, Tools
from combiner.rounds.sessions import SessionRunner
from combiner.rounds.worker import Worker
from combiner.servicers.connector import ConnectorServicer
from combiner.servicers.control import ControlServicer, ReducerServicer
from combiner.servicers.operator import ClientsServicer, JobsServicer, ModelsServicer, SessionsServicer
from combiner.servicers.streams import CombinerServicer
from combiner.settings import CombinerSettings
from combiner.statuses import Statuses
from combiner.streams import StreamHub
from combiner.tuning import Tuning
from fedcombiner.modelstorage.scratch import ScratchArea
from fedcombiner.modelstorage.store import ModelStore, StoreFull, StoreUnavailable
from fedcombiner.servicekit.health import Health
from fedcombiner.servicekit.lifecycle import Supervisor
from fedcombiner.servicekit.metrics import Metrics
from fedcombiner.servicekit.status import BackendStatus

log = structlog.get_logger()

PROBE_S = 5.0
# FEDn's clients cannot live with INTERNAL on these; a bug there is UNAVAILABLE to them.
CLIENT_SERVICES = tuple(
    f"{package}.{service}"
    for package in ("grpc", "fedn")
    for service in ("Connector", "Combiner", "ModelService")
)


class CombinerApp:
    """A combiner without its ports: `servicers` go onto a server, the rest is started and stopped as one
    component.

    `shared` and `store` are the back ends, already made; whoever made them closes them.
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
    ) -> None:
        self._shared = shared
        self._store = store
        self._health = health
        self._supervisor = supervisor
        self._redis = health.backends.register("redis")
        self._objects = health.backends.register("store")
        self._scratch = ScratchArea(settings.scratch)
        self._announcer = _announcer(settings)
        meter = CombinerMetrics(metrics)
        guard = OutageGuard()
        self.feed = Feed(shared.log)
        self.hub = StreamHub(replica, shared, self.feed)
        self.beats = Beats(shared.roster)
        self.statuses = Statuses(shared.log)
        self.inbox = Inbox(
            shared,
            store,
            meter,
            update_hold_s=settings.update_hold_seconds,
            answer_hold_s=settings.answer_hold_seconds,
        )
        self._tuning = Tuning(shared.settings, settings.max_clients)
        self._workshop = Workshop(self._scratch.directory, settings.fold_slots)
        tools = Tools(shared, store, self.feed, SharedClock(shared.log), self._workshop, guard, meter)
        self._worker = Worker(
            replica,
            shared,
            self.feed,
            {"job": JobRunner(tools), "session": SessionRunner(shared, self.feed)},
            guard,
        )
        self.feed.listen(self._on_event)
        self.servicers = self._servicers(settings)
        self._watch(meter)

    def _servicers(self, settings: CombinerSettings) -> Mapping[str, object]:
        shared = self._shared
        catalog = Catalog(shared.models, self._store)
        return {
            "Connector": ConnectorServicer(
                self.beats, self.statuses, self.inbox, shared.roster, self._tuning
            ),
            "Combiner": CombinerServicer(settings.name, self.hub, self.inbox, shared.tasks),
            "Control": ControlServicer(settings.name, shared, catalog, self._tuning),
            "Reducer": ReducerServicer(settings.name, shared),
            "Jobs": JobsServicer(shared, self.feed),
            "Sessions": SessionsServicer(shared, self.feed, catalog),
            "Models": ModelsServicer(shared, catalog),
            "Clients": ClientsServicer(shared, round(CLIENT_WINDOW * 1000)),
        }

    def _watch(self, meter: CombinerMetrics) -> None:
        meter.watch("streams", "Open client streams of this replica.", lambda: len(self.hub))
        meter.watch("active_clients", "Clients with a stream at this replica.", self.hub.clients)
        meter.watch("works", "Jobs and sessions that this replica runs.", lambda: self._worker.works)
        meter.watch("answers_pending", "Answers that are not recorded yet.", lambda: len(self.inbox))
        meter.watch(
            "answers_given_up", "Answers dropped because too many waited.", lambda: self.inbox.given_up
        )
        meter.watch(
            "statuses_dropped", "Status messages dropped while Redis was away.", lambda: self.statuses.dropped
        )

    def status(self) -> Mapping[str, object]:
        """For /statusz."""
        return {
            "streams": len(self.hub),
            "clients": self.hub.clients(),
            "works": self._worker.works,
            "answers_pending": len(self.inbox),
            "answers_given_up": self.inbox.given_up,
        }

    async def start(self) -> None:
        """Begin everything; ready as soon as Redis and the store have answered once."""
        await asyncio.to_thread(self._scratch.open)
        spawn = self._supervisor.spawn
        spawn("feed", self.feed.run())
        spawn("streams", self.hub.run())
        spawn("heartbeats", self.beats.run())
        spawn("statuses", self.statuses.run())
        spawn("probe back ends", self._probe())
        spawn("ready", self._ready())
        self._working = spawn("work", self._worker.run())
        if self._announcer is not None:
            spawn("announce", self._announcer.run())

    async def _ready(self) -> None:
        await self._health.backends.first_contact()
        self._health.readiness.mark_ready()

    async def _probe(self) -> None:
        async def redis() -> None:
            await self._shared.log.now_ms()

        async def store() -> None:
            await self._store.start()  # does nothing once it has succeeded
            await self._store.ping()

        while True:
            await _look(self._redis, redis)
            await _look(self._objects, store)
            await asyncio.sleep(PROBE_S if self._health.backends.all_up else PROBE_S / 10)

    def _on_event(self, event: Event) -> None:
        if self._tuning.concerns(event):
            self._supervisor.spawn("load settings", self._load_tuning())

    async def _load_tuning(self) -> None:
        try:
            await self._tuning.load()
        except StateUnavailable as error:
            log.warning("settings could not be read; the old ones stay", error=str(error))

    async def drain(self) -> None:
        """Before the ports close: end the streams, give the work back, record what is still on its way."""
        self._health.readiness.mark_draining()
        self.hub.drain()
        try:
            await self._worker.drain()
            await self.beats.flush()
        except StateUnavailable as error:
            log.warning("leases could not be given back; the others will notice", error=str(error))
        await self.hub.settle()
        await self.inbox.close(timeout=2.0)

    async def stop(self) -> None:
        """After `drain`, when the supervisor has ended the background tasks."""
        self._workshop.close()
        await asyncio.to_thread(self._scratch.close)


async def _look(backend: BackendStatus, check: Callable[[], Awaitable[None]]) -> None:
    try:
        await check()
    except (StateUnavailable, StoreUnavailable, StoreFull) as error:
        backend.mark_down(error)
    else:
        backend.mark_up()


def _announcer(settings: CombinerSettings) -> Announcer | None:
    if not settings.discovery_url:
        return None
    token = settings.discovery_token.get_secret_value()
    return Announcer(settings.discovery_url, settings.name, settings.advertise, token=token)


def make_store(settings: CombinerSettings) -> ModelStore:
    from fedcombiner.modelstorage.disk import DiskStore

    stores: Mapping[str, Callable[[Path], ModelStore]] = {"disk": DiskStore}
    return stores[settings.store](settings.data)
