"""What to do next about what a server refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fedcombiner.servicekit.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServiceError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)

# By the field that a NotFound begins with.
_LISTS: Final[Mapping[str, str]] = {
    "job_id": "`combiner job list` shows the jobs that are known",
    "session_id": "`combiner session list` shows the sessions that are known",
    "model_id": "`combiner model list` shows the models; `combiner model put FILE` makes one",
}
_BY_KIND: Final[Mapping[type[ServiceError], str]] = {
    Unauthenticated: "COMBINER_TOKEN holds the token that is sent; the operator of the server gives you one",
    PermissionDenied: "COMBINER_TOKEN holds the token that is sent; this needs one of another role",
    Unimplemented: "the server is older than this command: install the same version on both sides",
    ResourceExhausted: "try again when something has ended; `combiner status` shows what runs",
    Aborted: "try again",
    Unavailable: "try again; `combiner status` shows which back end is away",
    DeadlineExceeded: "try again; `combiner status` shows whether the server is well",
}
# They name the field and what is allowed, or what to do: there is nothing to add.
_SAY_IT_THEMSELVES: Final = (InvalidArgument, FailedPrecondition)


def next_step(error: ServiceError) -> str:
    """A line for people, or nothing if the error says it all."""
    if isinstance(error, NotFound):
        return _LISTS.get(error.message.partition(":")[0], "")
    if isinstance(error, _SAY_IT_THEMSELVES):
        return ""
    for kind, hint in _BY_KIND.items():
        if isinstance(error, kind):
            return hint
    return "the log of the combiner says more; `combiner status` shows whether it is well"
