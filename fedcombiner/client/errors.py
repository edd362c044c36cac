"""What a caller of the client library has to tell apart.

A status that a server answers comes back as the class of `fedcombiner.servicekit.errors` that it was raised
as over there (`rpc_errors`). The classes here are what only a client can know.

    ServiceError
    ├── NotFound
    │   └── ModelNotFound        the server has no complete model of that id
    ├── Unavailable              retryable
    │   ├── ServerUnreachable    nobody answers at the address, or whoever does cannot answer now
    │   ├── TlsFailed            a server is there, but not for the TLS that this client speaks or wants
    │   └── TransferBroken       a transfer ended before its end mark, or made no progress
    └── FailedPrecondition
        └── JoinRefused          discovery will not let this client in; asking again is of no use
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import grpc.aio

from fedcombiner.servicekit.errors import (
    MEANT_TRAILER,
    FailedPrecondition,
    NotFound,
    ServiceError,
    Unavailable,
    from_status,
)

# Statuses that say something about the request itself; the same request will meet the same answer.
_FINAL_CODES = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


class ModelNotFound(NotFound):
    """The server has no complete model of that id."""


class ServerUnreachable(Unavailable):
    """Nobody answers at the address, or whoever does cannot answer now."""

    def __init__(self, address: str, detail: str) -> None:
        super().__init__(f"no answer from {address}: {detail}")
        self.address = address


class TlsFailed(Unavailable):
    """A server is there, but client and server cannot agree on TLS; waiting is of no use.

    `trouble` is one of the sentences of `fedcombiner.client.trust.tls_trouble`.
    """

    def __init__(self, address: str, trouble: str) -> None:
        super().__init__(f"{address}: {trouble}")
        self.trouble = trouble


class TransferBroken(Unavailable):
    """A transfer ended before its end mark, or made no progress."""


class JoinRefused(FailedPrecondition):
    """Discovery will not let this client in; asking again is of no use."""


@contextmanager
def rpc_errors() -> Iterator[None]:
    """Raise the error that a failed call stands for.

    A status CANCELLED, which the peer or a proxy sent, is an outage like others, and so is UNKNOWN: gRPC
    makes it of a stream that ended without a status, as behind a proxy whose server died. grpc.aio may raise
    the first as CancelledError, as it does for a channel that was closed under the call; unless this task
    itself is being cancelled, that is an outage, too. A server that refuses a client says UNAVAILABLE for the
    sake of FEDn's clients, and in a trailer what it means.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_status(_meant(error), error.details() or "") from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Unavailable("the call was cancelled by the other side") from None


def _meant(error: grpc.aio.AioRpcError) -> grpc.StatusCode:
    for key, value in error.trailing_metadata():
        if key == MEANT_TRAILER and value in grpc.StatusCode.__members__:
            return grpc.StatusCode[str(value)]
    broken = error.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)
    return grpc.StatusCode.UNAVAILABLE if broken else error.code()


def is_final(error: ServiceError) -> bool:
    """Whether the same request would meet the same answer again."""
    return error.code in _FINAL_CODES
