"""What a discovery answers to an announcement, read as by FEDn's own connector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

import httpx

from fedcombiner.servicekit.errors import printable
from fedcombiner.servicekit.replies import json_object, over_https

MAX_ANSWER_BYTES: Final = 64 * 1024


class Status(IntEnum):
    """What became of an announcement; names and numbers are FEDn's."""

    Unassigned = 0  # no answer, or none that makes sense: tried again
    Assigned = 1
    TryAgain = 2  # the discovery said so
    UnAuthorized = 3
    UnMatchedConfig = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """What a discovery said.

    Attributes:
        message: why it is not Assigned, for a person.
        body: the JSON object; it may hold a private key.
        private: it came over https, at every step.
    """

    status: Status
    message: str = ""
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    private: bool = False


async def read_answer(response: httpx.Response) -> Answer:
    """Of a response whose body is still to come. A success without a status is none.

    Raises:
        httpx.HTTPError: the body does not come whole.
    """
    body = json_object(await _body(response))
    status = _status(response.status_code, body)
    reason = f"HTTP {response.status_code} {response.reason_phrase}"
    message = "" if status is Status.Assigned else printable(str(body.get("message") or reason))
    return Answer(status, message, body, private=over_https(response))


def _status(code: int, body: Mapping[str, Any]) -> Status:
    if code == 400:
        return Status.UnMatchedConfig
    if code == 401:
        return Status.UnAuthorized
    if 200 <= code <= 203 and "status" in body:
        return Status.TryAgain if body["status"] == "retry" else Status.Assigned
    return Status.Unassigned


async def _body(response: httpx.Response) -> bytes:
    """The first MAX_ANSWER_BYTES of it, which do not parse if there are more."""
    body = b""
    async for part in response.aiter_bytes():
        body += part
        if len(body) > MAX_ANSWER_BYTES:
            break
    return body[:MAX_ANSWER_BYTES]
