"""Metrics of one process: a registry that is made in the composition and handed in, never a global one."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from itertools import product
from typing import Final, Generic, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder

from fedcombiner.servicekit.interceptor import RpcMetrics

MetricT = TypeVar("MetricT", Counter, Gauge, Histogram)

PREFIX: Final = "fedcombiner_"
OTHER: Final = "other"
LAG_INTERVAL_SECONDS: Final = 0.5
LAG_BUCKETS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)


class Labelled(Generic[MetricT]):
    """A metric whose label values come from closed sets, so their number has a bound.

    All combinations exist, at zero, from the start; a value outside its set is counted as "other".
    """

    def __init__(self, metric: MetricT, allowed: Sequence[Collection[str]]) -> None:
        self._allowed = [frozenset(values) | {OTHER} for values in allowed]
        self._children: dict[tuple[str, ...], MetricT] = {
            values: metric.labels(*values) for values in product(*self._allowed)
        }

    def labels(self, *values: str) -> MetricT:
        """The metric for these label values, in the order in which the labels were declared."""
        known = zip(values, self._allowed, strict=True)
        return self._children[tuple(value if value in allowed else OTHER for value, allowed in known)]


class Metrics:
    """The registry of a process and the metrics that every service has; services add theirs.

    Names are given without the prefix `fedcombiner_`. Labels are keyword arguments: `reason=REASONS`.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.rpc = RpcMetrics(self.registry)
        # Named without the prefix: it is the one name that dashboards share over all kinds of services.
        self.backend_up = Gauge(
            "backend_up", "1 while the back end answers.", ("backend",), registry=self.registry
        )

    def counter(self, name: str, help_text: str) -> Counter:
        return Counter(PREFIX + name, help_text, registry=self.registry)

    def gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(PREFIX + name, help_text, registry=self.registry)

    def histogram(self, name: str, help_text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(PREFIX + name, help_text, buckets=buckets, registry=self.registry)

    def counters(self, name: str, help_text: str, **labels: Collection[str]) -> Labelled[Counter]:
        return self._labelled(Counter, name, help_text, labels)

    def gauges(self, name: str, help_text: str, **labels: Collection[str]) -> Labelled[Gauge]:
        return self._labelled(Gauge, name, help_text, labels)

    def _labelled(
        self,
        kind: Callable[..., MetricT],
        name: str,
        help_text: str,
        labels: dict[str, Collection[str]],
    ) -> Labelled[MetricT]:
        metric = kind(PREFIX + name, help_text, tuple(labels), registry=self.registry)
        return Labelled(metric, list(labels.values()))

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics in the text format that the `Accept` header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class LoopLag:
    """How late the event loop runs what is due, sampled twice a second, for there is no event to await; and
    how many tasks it has, counted when somebody asks.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._histogram = metrics.histogram(
            "event_loop_lag_seconds", "Delay of a timer in the event loop.", LAG_BUCKETS
        )
        self._tasks = metrics.gauge("event_loop_tasks", "Tasks of the event loop that have not ended.")
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks.set_function(lambda: len(asyncio.all_tasks(loop)))
        self._arm()

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + LAG_INTERVAL_SECONDS
        self._timer = loop.call_at(due, self._sample, due)

    def _sample(self, due: float) -> None:
        self._histogram.observe(max(0.0, asyncio.get_running_loop().time() - due))
        self._arm()
