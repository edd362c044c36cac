"""Which client a call counts for where callers share something."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import grpc.aio

bound_token: Final[ContextVar[str]] = ContextVar("bound_token", default="")
"""The digest of the token of the call under way, if that is bound to certain clients."""


def share_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The bound token of the caller, or else its address: a NAT or a gateway is one address.

    A token that is bound to no client may be everybody's, so it tells callers apart no better than nothing.
    """
    return bound_token.get() or address_of(context.peer())


def address_of(peer: str) -> str:
    """The address in what gRPC says of a peer, `ipv4:10.0.0.1:5000`, without the port."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer
