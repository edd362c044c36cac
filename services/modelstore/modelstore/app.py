"""The object graph of a modelstore, built in one place."""

from collections.abc import Callable, Mapping
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
from fedcombiner.servicekit.health import Health
from fedcombiner.servicekit.http import HttpServer, operations_app
from fedcombiner.servicekit.lifecycle import Lifecycle, Stop, Supervisor
from fedcombiner.servicekit.metrics import LoopLag, Metrics
from fedcombiner.servicekit.probe import keep_probing
from fedcombiner.servicekit.rpc import RpcServer, add_reflection, bind, build_server
from fedcombiner.servicekit.tls import load_identity
from fedcombiner.version import __version__
from fedcombiner.wire.registry import add_services, service_names
from modelstore.settings import ModelstoreSettings

WAYS: Final = ("in", "out")

Started = Callable[[int, int], None]


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
        "Model transfers that went on in the slow lane, were cut there, gave their place to another client "
        "for a while, or were refused because too many waited, by way.",
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
    metrics = Metrics()
    identity = load_identity(settings.tls_cert_file, settings.tls_key_file, metrics)
    health = Health(metrics)
    supervisor = Supervisor(stop)
    backend = health.backends.register("store")
    tokens = reader_of(settings)
    access = AccessControl(decide(settings, settings.listening), metrics, health, tokens)
    store = wrap(make_store(settings))
    servicers: Mapping[str, object] = {"ModelService": build_servicer(settings, store, metrics)}
    # FEDn's clients cannot live with INTERNAL: a bug is UNAVAILABLE to them.
    server = build_server(
        metrics.rpc, unavailable_on_bug=service_names(servicers), interceptors=access.interceptors
    )
    add_services(server, servicers)
    health.add_to(server)
    add_reflection(server, service_names(servicers))
    operations = operations_app(service="modelstore", version=__version__, metrics=metrics, health=health)
    private = access.protect(operations, "operations")
    http = HttpServer(private, settings.metrics_host, settings.metrics_port, setting="METRICS_PORT")
    async with Lifecycle(stop) as lifecycle:
        port = bind(server, settings.host, settings.port, identity=identity)
        await lifecycle.start("health", health)
        await lifecycle.start("loop lag", LoopLag(metrics))
        await lifecycle.start("operations", http)
        lifecycle.on_stop("store", store.close)
        if tokens is not None:
            lifecycle.on_stop("tokens", tokens.aclose)
        await lifecycle.start("background tasks", supervisor)
        access.start(supervisor)
        supervisor.spawn(
            "probe the store", keep_probing(backend, partial(check_store, store), away=STORE_AWAY)
        )
        supervisor.spawn("ready", health.ready_on_first_contact())
        rpc = RpcServer(server, grace=settings.drain_seconds)
        await lifecycle.start("rpc", rpc, stop_seconds=settings.drain_seconds + 5)
        lifecycle.on_stop("readiness", partial(_drain, health))
        started(port, http.port)
        await stop.wait()


async def _drain(health: Health) -> None:
    """First of all: whoever looks at readiness sends new calls elsewhere while those under way end."""
    health.readiness.mark_draining()
