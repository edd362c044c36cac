"""Errors that a caller is meant to see, each with its gRPC status on the class.

Handlers and the code below them raise these; `rpc.RpcInterceptor` alone turns them into statuses, and
`from_status` turns a status back into the same class on the calling side. Anything else that is raised
is a bug or a broken environment, and a caller is told no more than "internal error".

    Exception
    ├── ServiceError              what went wrong while a request was served
    │   ├── InvalidArgument       INVALID_ARGUMENT     names the field, the value and what is allowed
    │   ├── NotFound              NOT_FOUND
    │   ├── AlreadyExists         ALREADY_EXISTS
    │   ├── FailedPrecondition    FAILED_PRECONDITION  right request, wrong state
    │   ├── ResourceExhausted     RESOURCE_EXHAUSTED   a limit was reached
    │   ├── PermissionDenied      PERMISSION_DENIED    known, but not allowed
    │   ├── Unauthenticated       UNAUTHENTICATED      not known
    │   ├── Unimplemented         UNIMPLEMENTED
    │   ├── DeadlineExceeded      DEADLINE_EXCEEDED
    │   ├── Aborted               ABORTED              lost a race; retryable
    │   └── Unavailable           UNAVAILABLE          retryable
    └── StartupError              why a process cannot start, for its operator, in one line
"""

from typing import ClassVar, Final

import grpc

SHOWN_CHARS: Final = 100
# gRPC carries the message in a trailer, and peers refuse more than 8 KiB of them.
MESSAGE_CHARS: Final = 1000
# Trailer with the name of the status that is meant, where callers could not live with that status itself.
MEANT_TRAILER: Final = "combiner-status-meant"


def printable(text: str, limit: int = SHOWN_CHARS) -> str:
    """`text` cut to `limit` characters, with everything that a terminal or a log might obey escaped."""
    head = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[:limit])
    return head if len(text) <= limit else f"{head}…"


def shown(value: object) -> str:
    """A value from outside as it may appear in a message: printable and at most about 100 characters."""
    if isinstance(value, str):
        return f"'{printable(value)}'"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    return printable(repr(value))


class ServiceError(Exception):
    """Base of all errors with a gRPC status. `message` is public: it is sent to the caller."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    retryable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        self.message = printable(message, MESSAGE_CHARS)
        super().__init__(self.message)


class InvalidArgument(ServiceError):
    """A field of a request has a value that can never be right."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    field = ""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field}: {shown(value)} is not valid; allowed: {allowed}")
        self.field = field


class NotFound(ServiceError):
    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(ServiceError):
    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(ServiceError):
    code = grpc.StatusCode.FAILED_PRECONDITION


class ResourceExhausted(ServiceError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class PermissionDenied(ServiceError):
    code = grpc.StatusCode.PERMISSION_DENIED


class Unauthenticated(ServiceError):
    code = grpc.StatusCode.UNAUTHENTICATED


class Unimplemented(ServiceError):
    code = grpc.StatusCode.UNIMPLEMENTED


class DeadlineExceeded(ServiceError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Aborted(ServiceError):
    """The request lost a race with another one; the whole of it may be tried again."""

    code = grpc.StatusCode.ABORTED
    retryable = True


class Unavailable(ServiceError):
    """Something that should be there is away for now; the same request may be tried again."""

    code = grpc.StatusCode.UNAVAILABLE
    retryable = True
    # Whether a back end has answered, though it cannot do what it should.
    answered: ClassVar[bool] = False


class StartupError(Exception):
    """A process cannot start; the message is one line that its operator can act on."""


_BY_CODE: Final[dict[grpc.StatusCode, type[ServiceError]]] = {
    kind.code: kind
    for kind in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        ResourceExhausted,
        PermissionDenied,
        Unauthenticated,
        Unimplemented,
        DeadlineExceeded,
        Aborted,
        Unavailable,
    )
}


def from_status(code: grpc.StatusCode, message: str) -> ServiceError:
    """The error whose status a peer sent; a plain `ServiceError` for a status that has no class here."""
    kind = _BY_CODE.get(code, ServiceError)
    error = kind.__new__(kind)
    # Not kind(message): subclasses compose their message from parts, and here it is composed already.
    ServiceError.__init__(error, message or code.name)
    return error
