"""Putting something around the handler of a method, of whatever kind."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Deserializer: TypeAlias = Callable[[bytes], Any]

_HANDLER_FACTORIES: Final[dict[tuple[bool, bool], Callable[..., Handler]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


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


def with_behaviour(handler: Handler, behaviour: Callable[..., Any]) -> Handler:
    """The handler with another function behind it, for the same messages."""
    return make_handler(handler, behaviour, handler.request_deserializer)


def make_handler(
    handler: Handler,
    behaviour: Callable[..., Any],
    read: Deserializer | None,
    *,
    request_streaming: bool | None = None,
) -> Handler:
    """As `with_behaviour`, with another decoder, and taking a stream of requests or one if that is given."""
    streaming = handler.request_streaming if request_streaming is None else request_streaming
    factory = _HANDLER_FACTORIES[streaming, handler.response_streaming]
    return factory(behaviour, read, handler.response_serializer)


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
