"""Endpoints that speak JSON: bodies with a limit, errors as answers, everything counted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import aclosing
from typing import Final

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from discovery_mock.fields import BadRequest
from discovery_mock.messages import refused
from fedcombiner.modelstorage.store import StoreFull
from fedcombiner.servicekit.errors import Aborted, InvalidArgument, NotFound, PermissionDenied, ServiceError
from fedcombiner.servicekit.metrics import Metrics

log = structlog.get_logger(__name__)

MAX_BODY_BYTES: Final = 16 * 1024
BODY_SECONDS: Final = 10.0
TRY_LATER: Final = 203

Answer = tuple[int, Mapping[str, object]]
Handler = Callable[[Request], Awaitable[Answer | Response]]

_STATUS: Final[Mapping[type[ServiceError], int]] = {
    InvalidArgument: 400,
    NotFound: 404,
    PermissionDenied: 403,
    Aborted: 409,
    StoreFull: 507,
}
_AWAY: Final = 503
# The rest of the body is still to come; without this the server would read it all, and drop it.
_UNREAD: Final = (408, 413)
_CLOSING: Final = {"connection": "close"}


class Endpoints:
    """Makes routes of handlers, and counts their answers under the names in `requests`."""

    def __init__(self, metrics: Metrics, requests: Collection[str]) -> None:
        self._answers = metrics.counters(
            "discovery_answers_total",
            "Answers of the discovery.",
            request=requests,
            outcome=("ok", "retry", "refused"),
        )

    def route(self, path: str, name: str, handle: Handler, method: str = "GET") -> Route:
        async def answer(request: Request) -> Response:
            response = await _answered(name, handle, request)
            outcome = "retry" if response.status_code == TRY_LATER else "refused"
            self._answers.labels(name, "ok" if response.status_code in (200, 201) else outcome).inc()
            return response

        return Route(path, answer, methods=[method])


class SingleSlashes:
    """Clients of FEDn 0.17 to 0.33 ask for `//download_package`; a path is the same with one slash."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": re.sub("/{2,}", "/", scope["path"])}
        await self._app(scope, receive, send)


async def body_of(request: Request) -> bytes:
    """Raises HTTPException as soon as it is too large or too slow."""
    body = b""
    try:
        async with asyncio.timeout(BODY_SECONDS), aclosing(parts_of(request)) as parts:
            async for part in parts:
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise HTTPException(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
    except TimeoutError:
        raise HTTPException(408, f"the body did not come within {BODY_SECONDS:g} s") from None
    return body


async def parts_of(request: Request) -> AsyncGenerator[bytes, None]:
    """The body as it comes. Raises HTTPException if the client goes away."""
    try:
        async for part in request.stream():
            yield part
    except ClientDisconnect:
        raise HTTPException(400, "the client went away") from None


async def in_json(_request: Request, error: Exception) -> Response:
    """For what Starlette refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    return JSONResponse(refused(error.detail), status_code=error.status_code, headers=error.headers)


async def _answered(name: str, handle: Handler, request: Request) -> Response:
    try:
        found = await handle(request)
    except BadRequest as error:
        found = _refused(name, 400, str(error))
    except HTTPException as error:
        found = _refused(name, error.status_code, error.detail)
    except ServiceError as error:
        found = _refused(name, _STATUS.get(type(error), _AWAY), error.message)
    if isinstance(found, Response):
        return found
    status, body = found
    return JSONResponse(body, status, _CLOSING if status in _UNREAD else None)


def _refused(name: str, status: int, message: str) -> Answer:
    log.info("refused", request=name, status=status, reason=message)
    return status, refused(message)
