"""The id of a request, from service to service: metadata `x-request-id`, and in what is logged meanwhile.

The gateway gives one to each call that has none, so what a call did in several services is found by one word.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

if TYPE_CHECKING:
    from structlog.typing import EventDict

REQUEST_ID: Final = "x-request-id"
# Everybody can send one, and it goes into the log.
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")

_metadata: ContextVar[Iterable[tuple[str, str | bytes]]] = ContextVar("metadata", default=())


class RequestIds(grpc.aio.ServerInterceptor):
    """Keeps the metadata of the call at hand. The id is looked for only when something is logged: thousands
    of heartbeats a second log nothing.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        # gRPC calls the handler in this same task, so it sees the variable.
        _metadata.set(handler_call_details.invocation_metadata or ())
        return await continuation(handler_call_details)


def add_request_id(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """A structlog processor."""
    for key, value in _metadata.get():
        if key == REQUEST_ID and isinstance(value, str) and _ID.fullmatch(value):
            event["request_id"] = value
    return event
