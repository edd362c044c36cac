"""What the servicers share."""

from __future__ import annotations

from typing import Any, Final, TypeAlias, cast

import grpc.aio

from combiner.ports import StateFull, StateUnavailable
from fedcombiner.servicekit.errors import NotFound, ResourceExhausted, Unavailable
from fedcombiner.wire.eras import identity
from fedcombiner.wire.pb import fedn_pb2

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

IN_PROCESS: Final = cast(Context, None)
"""The context of a handler that this process calls itself: none of ours looks at it."""

NAME_MAX = 256
NAME_ALLOWED = f"1 to {NAME_MAX} printable characters"


def client_name(sender: fedn_pb2.Client) -> str:
    """Who sends this; empty if the message names nobody, or with a name that cannot be one."""
    name = identity(sender)
    return name if 0 < len(name) <= NAME_MAX and name.isprintable() else ""


def other_name(sender: fedn_pb2.Client) -> str:
    """The name of a client that is known by its id; empty if it has none, or none that can be one."""
    name = sender.name if sender.client_id else ""
    return name if len(name) <= NAME_MAX and name.isprintable() else ""


def user_agent(context: Context) -> str:
    """gRPC's; empty for a handler that is called in this process."""
    if context is IN_PROCESS:
        return ""
    metadata = context.invocation_metadata() or ()
    return next((str(value) for key, value in metadata if key == "user-agent"), "")


def redis_away(error: StateUnavailable) -> Unavailable | ResourceExhausted:
    """For an operator: rpcs of clients never end with RESOURCE_EXHAUSTED."""
    if isinstance(error, StateFull):
        return ResourceExhausted(str(error))
    return Unavailable(f"Redis is away: {error}; try again")


def model_removed(model_id: str) -> NotFound:
    """A model was pruned between the look at it and the start of work on it."""
    return NotFound(f"model_id: {model_id} was removed before the work on it could begin")


def parameters(request: fedn_pb2.ControlRequest) -> dict[str, str]:
    """Later duplicates win, as in FEDn."""
    return {parameter.key: parameter.value for parameter in request.parameter}
