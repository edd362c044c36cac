"""The one interceptor around every rpc handler: errors become statuses, and calls are counted.

It is one interceptor and not two because thousands of heartbeats a second go through it: the wrapped
handler of a method is built once and kept, so a call costs one look-up, one frame and five counters.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Any, Final, NoReturn

import grpc
import grpc.aio
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fedcombiner.servicekit.errors import MEANT_TRAILER, ServiceError
from fedcombiner.servicekit.incoming import RequestTooLong, RequestUnfinished
from fedcombiner.servicekit.underway import CallsUnderWay
from fedcombiner.servicekit.wrapping import (
    Context,
    Handler,
    WrappingInterceptor,
    behaviour_of,
    with_behaviour,
    write_responses,
)

log = structlog.get_logger(__name__)

INTERNAL_MESSAGE: Final = "internal error"
STOPPING_MESSAGE: Final = "the server is shutting down"
BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)


class RpcMetrics:
    """What is counted of calls. Labels come from registered methods and gRPC's codes only, so they are few.

    A call is counted when it starts and when it ends; the latency of a method that answers with a stream
    is how long somebody listened, so it is left out of the histogram.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        method = ("service", "method")
        self.started = Counter(
            "fedcombiner_rpc_started_total", "Calls that reached a handler.", method, registry=registry
        )
        self.handled = Counter(
            "fedcombiner_rpc_handled_total", "Calls that ended.", (*method, "code"), registry=registry
        )
        self.in_flight = Gauge(
            "fedcombiner_rpc_in_flight", "Calls and streams being served.", method, registry=registry
        )
        self.refused = Counter(
            "fedcombiner_rpc_requests_refused_total",
            "Requests refused unread, by method and reason: too_long for the method, or unfinished in time.",
            (*method, "reason"),
            registry=registry,
        )
        self.seconds = Histogram(
            "fedcombiner_rpc_duration_seconds",
            "Time to the answer of methods with one answer.",
            method,
            buckets=BUCKETS,
            registry=registry,
        )


class RpcInterceptor(WrappingInterceptor):
    """Maps what handlers raise, and counts calls; for all four kinds of methods, raw bytes or not.

    A ServiceError becomes its status with its message. Anything else is logged with its traceback and
    becomes INTERNAL, or UNAVAILABLE for a service in `unavailable_on_bug`, with the text "internal error".
    A caller that went away is no error. A request that is too long for its method is INVALID_ARGUMENT, or
    UNAVAILABLE in these services. Handlers must be coroutine or async generator functions.
    """

    def __init__(
        self,
        metrics: RpcMetrics,
        unavailable_on_bug: Collection[str] = (),
        under_way: CallsUnderWay | None = None,
    ) -> None:
        super().__init__()
        self._metrics = metrics
        self._under_way = under_way or CallsUnderWay()
        self._unavailable_on_bug = frozenset(unavailable_on_bug)

    def wrap(self, method: str, handler: Handler) -> Handler:
        service, _, name = method.lstrip("/").rpartition("/")
        bug = grpc.StatusCode.UNAVAILABLE if service in self._unavailable_on_bug else grpc.StatusCode.INTERNAL
        behaviour = behaviour_of(method, handler)
        call = _Method(service, name, behaviour, bug, self._metrics, self._under_way)
        answer = call.answer_stream if handler.response_streaming else call.answer
        return with_behaviour(handler, answer)


class _Method:
    """One method of a service as it is called: the handler in its wrapping, with its counters at hand."""

    def __init__(
        self,
        service: str,
        name: str,
        behaviour: Any,
        bug: grpc.StatusCode,
        metrics: RpcMetrics,
        under_way: CallsUnderWay,
    ) -> None:
        self._path = f"{service}/{name}"
        self._labels = (service, name)
        self._behaviour = behaviour
        self._bug = bug
        self._started = metrics.started.labels(service, name)
        self._in_flight = metrics.in_flight.labels(service, name)
        self._seconds = metrics.seconds.labels(service, name)
        self._metrics = metrics
        self._under_way = under_way
        self._handled: dict[object, Counter] = {}

    async def answer(self, request: Any, context: Context) -> Any:
        begun = time.perf_counter()
        self._begin()
        code: object = grpc.StatusCode.CANCELLED
        try:
            response = await self._behaviour(request, context)
            code = grpc.StatusCode.OK
            return response
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 — all are mapped
            await self._refuse(error, context)
        finally:
            self._seconds.observe(time.perf_counter() - begun)
            self._end(context.code() or code)

    async def answer_stream(self, request: Any, context: Context) -> None:
        self._begin()
        code: object = grpc.StatusCode.CANCELLED
        try:
            await write_responses(self._behaviour, request, context)
            code = grpc.StatusCode.OK
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 — all are mapped
            await self._refuse(error, context)
        finally:
            self._end(context.code() or code)

    def _begin(self) -> None:
        self._under_way.begin()
        self._started.inc()
        self._in_flight.inc()

    def _end(self, code: object) -> None:
        self._under_way.finish()
        self._in_flight.dec()
        counter = self._handled.get(code)
        if counter is None:
            name = getattr(code, "name", str(code))
            counter = self._handled[code] = self._metrics.handled.labels(*self._labels, name)
        counter.inc()

    async def _refuse(self, error: BaseException, context: Context) -> NoReturn:
        ended = isinstance(error, asyncio.CancelledError) and self._under_way.was_ended()
        if _is_grpcs_own(error, context) or (ended and context.done()):
            raise error
        if ended:
            await context.abort(grpc.StatusCode.UNAVAILABLE, STOPPING_MESSAGE)
        if isinstance(error, ServiceError):
            await context.abort(self._status_of(error, context), error.message)
        if isinstance(error, asyncio.CancelledError):
            # The handler waited for something that our side cancelled. gRPC would take it for a
            # cancelled call and send no status, and the caller would wait for ever.
            log.warning("handler cancelled from inside", method=self._path)
            await context.abort(grpc.StatusCode.UNAVAILABLE, STOPPING_MESSAGE)
        log.error("unexpected error in a handler", method=self._path, exc_info=error)
        await context.abort(self._bug, INTERNAL_MESSAGE)

    def _status_of(self, error: ServiceError, context: Context) -> grpc.StatusCode:
        if isinstance(error, RequestUnfinished):
            self._refused("unfinished").inc()
        if isinstance(error, RequestTooLong):
            self._refused("too_long").inc()
            if self._bug is grpc.StatusCode.UNAVAILABLE:
                context.set_trailing_metadata(((MEANT_TRAILER, error.code.name),))
                return self._bug
        return error.code

    def _refused(self, reason: str) -> Counter:
        return self._metrics.refused.labels(*self._labels, reason)


def _is_grpcs_own(error: BaseException, context: Context) -> bool:
    """Whether gRPC itself ends the call with `error`: aborted, cancelled by the caller, or out of reach."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    if isinstance(error, grpc.aio.UsageError):
        return context.done()
    return isinstance(error, grpc.aio.BaseError)
