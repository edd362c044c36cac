"""The one interceptor around every rpc handler: errors become statuses, and calls are counted.

It is one interceptor and not two because thousands of heartbeats a second go through it: the wrapped
handler of a method is built once and kept, so a call costs one look-up, one frame and five counters.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection
from contextlib import aclosing
from typing import Any, Final, NoReturn, TypeAlias

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fedcombiner.servicekit.errors import InvalidArgument, ServiceError

log = structlog.get_logger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Deserializer: TypeAlias = Callable[[bytes], Any]

INTERNAL_MESSAGE: Final = "internal error"
BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)

_HANDLER_FACTORIES: Final[dict[tuple[bool, bool], Callable[..., Handler]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


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
        self.seconds = Histogram(
            "fedcombiner_rpc_duration_seconds",
            "Time to the answer of methods with one answer.",
            method,
            buckets=BUCKETS,
            registry=registry,
        )


class WrappingInterceptor(grpc.aio.ServerInterceptor, ABC):
    """Puts something around the handler of each method: made once for each, and kept."""

    def __init__(self) -> None:
        # At most one entry for each method that is served: unknown ones have no handler.
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    @abstractmethod
    def wrap(self, method: str, handler: Handler) -> Handler:
        """What is called in place of the handler of `method`, such as `/grpc.Connector/SendHeartbeat`."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, self.wrap(method, handler))
        return known[1]


def behaviour_of(method: str, handler: Handler) -> Any:
    """The function behind a handler, of whatever kind. Raises TypeError if it is not asynchronous."""
    behaviour: Any = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    if not (inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour)):
        raise TypeError(f"the handler of {method} is not asynchronous")
    return behaviour


def with_behaviour(
    handler: Handler, behaviour: Callable[..., Any], reader: Callable[[bytes], Any] | None = None
) -> Handler:
    """The handler with another function behind it, for the same messages; `reader` decodes its requests."""
    factory = _HANDLER_FACTORIES[handler.request_streaming, handler.response_streaming]
    return factory(behaviour, reader or handler.request_deserializer, handler.response_serializer)


async def write_responses(behaviour: Any, request: Any, context: Context) -> None:
    """Run a behaviour that answers with a stream, to its end.

    The responses of a generator are written here and not by gRPC, which leaves the generator of a cancelled
    call to the collector: the handler's own clean-up must have run when the call has ended.
    """
    if not inspect.isasyncgenfunction(behaviour):
        await behaviour(request, context)
        return
    async with aclosing(behaviour(request, context)) as responses:
        async for response in responses:
            await context.write(response)


class RpcInterceptor(WrappingInterceptor):
    """Maps what handlers raise, and counts calls; for all four kinds of methods, raw bytes or not.

    A ServiceError becomes its status with its message. Anything else is logged with its traceback and
    becomes INTERNAL, or UNAVAILABLE for a service in `unavailable_on_bug`, with the text "internal error".
    A caller that went away is no error. Bytes that are no request of the method are INVALID_ARGUMENT; gRPC
    alone would say UNKNOWN, with the decoder's text. Handlers must be coroutine or async generator functions.
    """

    def __init__(self, metrics: RpcMetrics, unavailable_on_bug: Collection[str] = ()) -> None:
        super().__init__()
        self._metrics = metrics
        self._unavailable_on_bug = frozenset(unavailable_on_bug)

    def wrap(self, method: str, handler: Handler) -> Handler:
        service, _, name = method.lstrip("/").rpartition("/")
        bug = grpc.StatusCode.UNAVAILABLE if service in self._unavailable_on_bug else grpc.StatusCode.INTERNAL
        call = _Method(service, name, behaviour_of(method, handler), bug, self._metrics)
        answer = call.answer_stream if handler.response_streaming else call.answer
        return with_behaviour(handler, answer, _reader(handler))


class _Method:
    """One method of a service as it is called: the handler in its wrapping, with its counters at hand."""

    def __init__(
        self, service: str, name: str, behaviour: Any, bug: grpc.StatusCode, metrics: RpcMetrics
    ) -> None:
        self._path = f"{service}/{name}"
        self._labels = (service, name)
        self._behaviour = behaviour
        self._bug = bug
        self._started = metrics.started.labels(service, name)
        self._in_flight = metrics.in_flight.labels(service, name)
        self._seconds = metrics.seconds.labels(service, name)
        self._metrics = metrics
        self._handled: dict[object, Counter] = {}

    async def answer(self, request: Any, context: Context) -> Any:
        begun = time.perf_counter()
        self._begin()
        code: object = grpc.StatusCode.CANCELLED
        try:
            _raise_if_malformed(request)
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
            _raise_if_malformed(request)
            await write_responses(self._behaviour, request, context)
            code = grpc.StatusCode.OK
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 — all are mapped
            await self._refuse(error, context)
        finally:
            self._end(context.code() or code)

    def _begin(self) -> None:
        self._started.inc()
        self._in_flight.inc()

    def _end(self, code: object) -> None:
        self._in_flight.dec()
        counter = self._handled.get(code)
        if counter is None:
            name = getattr(code, "name", str(code))
            counter = self._handled[code] = self._metrics.handled.labels(*self._labels, name)
        counter.inc()

    async def _refuse(self, error: BaseException, context: Context) -> NoReturn:
        if _is_grpcs_own(error, context):
            raise error
        if isinstance(error, ServiceError):
            await context.abort(error.code, error.message)
        if isinstance(error, asyncio.CancelledError):
            # The handler waited for something that our side cancelled. gRPC would take it for a
            # cancelled call and send no status, and the caller would wait for ever.
            log.warning("handler cancelled from inside", method=self._path)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        log.error("unexpected error in a handler", method=self._path, exc_info=error)
        await context.abort(self._bug, INTERNAL_MESSAGE)


def _reader(handler: Handler) -> Deserializer | None:
    """The handler's deserializer, of which gRPC never sees an error.

    What comes in a stream is read where the handler asks for it, and may raise there. A single request is
    read before any of our code runs, so its error is handed on in its place.
    """
    read: Deserializer | None = handler.request_deserializer
    if read is None:
        return None

    def read_or_refuse(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            error = InvalidArgument("request", data, "a serialized message of the type that the method takes")
            if handler.request_streaming:
                raise error from None
            return error

    return read_or_refuse


def _raise_if_malformed(request: Any) -> None:
    if isinstance(request, InvalidArgument):
        raise request


def _is_grpcs_own(error: BaseException, context: Context) -> bool:
    """Whether gRPC itself ends the call with `error`: aborted, cancelled by the caller, or out of reach."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    if isinstance(error, grpc.aio.UsageError):
        return context.done()
    return isinstance(error, grpc.aio.BaseError)
