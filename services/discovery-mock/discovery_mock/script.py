"""Answers that the discovery would not give by itself, for tests of those who ask it.

Rules are put at the port of operations, never at the public one: each says which requests get which answer,
and how many times. The first rule that fits answers; when it is used up it is gone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from discovery_mock.messages import not_yet, refused
from discovery_mock.web import TRY_LATER, body_of
from fedcombiner.servicekit.errors import printable, shown

Kind = Literal["combiner", "client", "package", "checksum", "config"]

KINDS: Final[Mapping[str, Kind]] = {
    "/add_combiner": "combiner",
    "/assign": "client",
    "/add_client": "client",
    "/api/v1/clients/add": "client",
    "/context": "package",
    "/download_package": "package",
    "/api/v1/packages/download": "package",
    "/checksum": "checksum",
    "/get_package_checksum": "checksum",
    "/api/v1/packages/checksum": "checksum",
    "/get_client_config": "config",
}
_SAID: Final = "this answer is scripted"
_CUT_AFTER: Final = b'{"success"'


class Rule(BaseModel):
    """`answer`: retry is 203, slow is the real answer after `seconds`, cut is a connection that breaks."""

    model_config = ConfigDict(extra="forbid")

    request: Kind | Literal["any"] = "any"
    answer: Literal["retry", "400", "401", "500", "slow", "cut"]
    times: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    seconds: Annotated[float, Field(gt=0, le=3600)] = 5.0


class Rules(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rules: Annotated[list[Rule], Field(max_length=100)]


class Script:
    """The rules in force, and the endpoint that sets them. Without any, everything passes."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []

    @property
    def routes(self) -> list[Route]:
        """For the port of operations."""
        return [
            Route("/script", self._show, methods=["GET"]),
            Route("/script", self._set, methods=["PUT"]),
            Route("/script", self._clear, methods=["DELETE"]),
        ]

    def take(self, path: str) -> Rule | None:
        """The rule for a request to this path, used once by this."""
        kind = KINDS.get(path)
        for rule in self._rules:
            if kind and rule.request in ("any", kind):
                rule.times -= 1
                self._rules = [rule for rule in self._rules if rule.times]
                return rule
        return None

    async def _show(self, _request: Request) -> Response:
        return JSONResponse(Rules(rules=self._rules).model_dump())

    async def _set(self, request: Request) -> Response:
        try:
            self._rules = Rules.model_validate(json.loads(await body_of(request))).rules
        except ValidationError as error:
            return JSONResponse(refused(_first(error)), 400)
        except (ValueError, RecursionError):
            return JSONResponse(refused("the body is not JSON"), 400)
        return await self._show(request)

    async def _clear(self, request: Request) -> Response:
        self._rules = []
        return await self._show(request)


class Scripted:
    """An application whose answers follow the script."""

    def __init__(self, app: ASGIApp, script: Script) -> None:
        self._app = app
        self._script = script

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        rule = self._script.take(scope["path"]) if scope["type"] == "http" else None
        if rule is None:
            await self._app(scope, receive, send)
        elif rule.answer == "slow":
            await asyncio.sleep(rule.seconds)
            await self._app(scope, receive, send)
        elif rule.answer == "cut":
            await _cut(send)
        else:
            await _answer(rule)(scope, receive, send)


def _answer(rule: Rule) -> Response:
    if rule.answer == "retry":
        return JSONResponse(not_yet(_SAID, "remote"), TRY_LATER)
    return JSONResponse(refused(_SAID), int(rule.answer))


async def _cut(send: Send) -> None:
    """Less than was promised: the server can only close the connection then."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"1000")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _CUT_AFTER, "more_body": True})


def _first(error: ValidationError) -> str:
    detail = error.errors()[0]
    where = ".".join(str(part) for part in detail["loc"]) or "the body"
    return f"{printable(where)} cannot be {shown(detail['input'])}: {detail['msg']}"
