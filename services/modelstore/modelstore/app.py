"""The object graph of a modelstore, built in one place."""

from collections.abc import Callable
from functools import partial
from typing import Final

from fedcombiner.access.policy import decide
from fedcombiner.access.redis_tokens import reader_of
from fedcombiner.access.setup import AccessControl
from fedcombiner.modelstorage.lanes import EVENTS
from fedcombiner.modelstorage.limits import TransferLimits, TransferMeter
from fedcombiner.modelstorage.servicer import ModelServiceServicer
from fedcombiner.modelstorage.store import STORE_AWAY, ModelStore, check_store
from fedcombiner.modelstorage.stores import make_store
from fedcombiner.servicekit.lifecycle import Stop
from fedcombiner.servicekit.metrics import Metrics
from fedcombiner.servicekit.service import Service, Started
from fedcombiner.version import __version__
from fedcombiner.wire.registry import Services, service_names
from modelstore.settings import ModelstoreSettings

WAYS: Final = ("in", "out")


def build_servicer(settings: ModelstoreSettings, store: ModelStore, metrics: Metrics) -> ModelServiceServicer:
    """The ModelService of this process or a larger one, on a store that is or will be started."""
    limits = TransferLimits(
        max_bytes=settings.max_model_bytes,
        max_transfers=settings.max_transfers,
        max_slow_transfers=settings.max_slow_transfers,
        max_waiting_transfers=settings.max_waiting_transfers,
        min_rate=settings.min_transfer_rate,
        idle_timeout=settings.idle_seconds,
        store_timeout=settings.store_seconds,
    )
    moved = metrics.counters("model_bytes_total", "Bytes of models, by way.", way=WAYS)
    events = metrics.counters(
        "transfer_events_total",
        "Model transfers that went on in the slow lane, were cut there, gave their slot to another client "
        "for a while, were refused because too many waited, or had their connection closed, by way.",
        way=WAYS,
        event=EVENTS,
    )
    meter = TransferMeter(
        received=moved.labels("in").inc,
        sent=moved.labels("out").inc,
        happened=lambda way, event: events.labels(way, event).inc(),
    )
    servicer = ModelServiceServicer(store, limits, meter)
    running = metrics.gauges("transfers_running", "Model transfers under way, by way.", way=WAYS)
    slow = metrics.gauges("transfers_slow", "Those of them that are in the slow lane, by way.", way=WAYS)
    waiting = metrics.gauges("transfers_waiting", "Model transfers that wait, by way.", way=WAYS)
    for way, traffic in (("in", servicer.uploads), ("out", servicer.downloads)):
        running.labels(way).set_function(partial(getattr, traffic, "under_way"))
        slow.labels(way).set_function(partial(getattr, traffic, "slow"))
        waiting.labels(way).set_function(partial(getattr, traffic, "waiting"))
    return servicer


async def serve(
    settings: ModelstoreSettings,
    stop: Stop,
    started: Started = lambda _port, _metrics_port: None,
    *,
    wrap: Callable[[ModelStore], ModelStore] = lambda store: store,
) -> None:
    """Run a modelstore until the stop. `started` is told its ports as soon as it takes calls; `wrap` may put
    something between the service and its store.

    Raises:
        StartupError: a port is taken, a setting cannot be, or everybody could call everything.
    """
    tokens = reader_of(settings)
    policy = decide(settings, settings.listening)
    service = Service(
        "modelstore",
        __version__,
        settings,
        stop,
        lambda metrics, health: AccessControl(policy, metrics, health, tokens),
    )
    store = wrap(make_store(settings))
    service.owns("store", store.close)
    if tokens is not None:
        service.owns("tokens", tokens.aclose)
    service.backend("store", partial(check_store, store), away=STORE_AWAY)
    servicers = {"ModelService": build_servicer(settings, store, service.metrics)}
    names = service_names(servicers)
    # FEDn's clients cannot live with INTERNAL: a bug is UNAVAILABLE to them.
    service.rpc(Services(servicers), names=names, unavailable_on_bug=names)
    await service.run(started)
