"""The combiner as a process of its own."""

from __future__ import annotations

import sys

from combiner.adapters.limits import Limits
from combiner.adapters.state import RedisState
from combiner.app import CLIENT_SERVICES, CombinerApp, make_store
from combiner.settings import CombinerSettings, replica_name
from fedcombiner.servicekit import logs
from fedcombiner.servicekit.health import Health
from fedcombiner.servicekit.http import HttpServer, operations_app
from fedcombiner.servicekit.lifecycle import Lifecycle, Stop, Supervisor, run
from fedcombiner.servicekit.metrics import LoopLag, Metrics
from fedcombiner.servicekit.rpc import RpcServer, add_reflection, bind, build_server
from fedcombiner.servicekit.settings import load_or_exit
from fedcombiner.version import __version__
from fedcombiner.wire.registry import add_services, service_names


async def serve(settings: CombinerSettings, stop: Stop) -> None:
    metrics = Metrics()
    health = Health(metrics)
    supervisor = Supervisor(stop)
    replica = replica_name()
    limits = Limits(max_running_jobs=settings.max_running_jobs)
    shared = RedisState(settings.redis_url.get_secret_value(), limits=limits)
    store = make_store(settings)
    app = CombinerApp(settings, replica, shared, store, metrics, health, supervisor)
    server = build_server(metrics.rpc, unavailable_on_bug=CLIENT_SERVICES)
    add_services(server, app.servicers)
    health.add_to(server)
    add_reflection(server, service_names(app.servicers))
    operations = operations_app(
        service="combiner",
        version=__version__,
        metrics=metrics,
        health=health,
        sections={"combiner": app.status},
    )
    async with Lifecycle(stop) as lifecycle:
        await lifecycle.start("health", health)
        await lifecycle.start("loop lag", LoopLag(metrics))
        lifecycle.on_stop("state", shared.aclose)
        lifecycle.on_stop("store", store.close)
        http = HttpServer(operations, settings.metrics_host, settings.metrics_port, setting="METRICS_PORT")
        await lifecycle.start("operations", http)
        await lifecycle.start("combiner", app)
        await lifecycle.start("background tasks", supervisor)
        bind(server, settings.host, settings.port)
        await lifecycle.start("rpc", RpcServer(server, grace=1.0))
        lifecycle.on_stop("drain", app.drain)
        await stop.wait()


def main() -> None:
    settings = load_or_exit(CombinerSettings)
    logs.configure(settings.log_format, settings.log_level, "combiner")
    sys.exit(run(lambda stop: serve(settings, stop)))


if __name__ == "__main__":
    main()
