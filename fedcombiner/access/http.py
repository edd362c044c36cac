"""The gate in front of every HTTP endpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from fedcombiner.access.gate import Gate, Pass
from fedcombiner.access.secret import header
from fedcombiner.access.table import ENDPOINTS, Access, Listener
from fedcombiner.servicekit.errors import PermissionDenied, ServiceError, Unauthenticated

Refusal = Callable[[ServiceError, Access], Response]

_STATUS: Final[Mapping[type[ServiceError], int]] = {Unauthenticated: 401, PermissionDenied: 403}
_AWAY: Final = 503
_ADMITTED: Final = "fedcombiner.admitted"


def refusal(error: ServiceError, _access: Access) -> Response:
    """401, 403, or 503 while tokens cannot be checked, with the keys that FEDn's clients look for."""
    code = _STATUS.get(type(error), _AWAY)
    body = {"success": False, "message": error.message, "msg": error.message}
    return JSONResponse(body, code, {"WWW-Authenticate": "Bearer"} if code == 401 else None)


def admitted(scope: Scope) -> Pass | None:
    """Who has sent this request; None if no token was looked at."""
    sender = scope.get(_ADMITTED)
    return sender if isinstance(sender, Pass) else None


class Protected:
    """A Starlette application whose routes each have a row in the table, behind the gate.

    Requests that no route is there for pass, to be told so. `refuse` makes the answer to a refused one.

    Raises:
        LookupError: a route has no row.
    """

    def __init__(self, app: Starlette, gate: Gate, listener: Listener, refuse: Refusal = refusal) -> None:
        self._app = app
        self._gate = gate
        self._refuse = refuse
        self._rows = [(route, _rows(route, ENDPOINTS[listener])) for route in _routes(app)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        access = self._access(scope)
        if access is not None and not self._gate.is_open(access):
            authorization = header(Headers(scope=scope).getlist("authorization"))
            try:
                scope = {**scope, _ADMITTED: await self._gate.admit(access, authorization)}
            except ServiceError as error:
                await self._refuse(error, access)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _access(self, scope: Scope) -> Access | None:
        if scope["type"] != "http":
            return None
        for route, rows in self._rows:
            if route.matches(scope)[0] is Match.FULL:
                return rows[scope["method"]]
        return None


def _routes(app: Starlette) -> list[Route]:
    for route in app.routes:
        if not isinstance(route, Route):
            raise LookupError(f"{route}: only plain routes can have a row in the table of access")
    return [route for route in app.routes if isinstance(route, Route)]


def _rows(route: Route, rows: Mapping[str, Access]) -> Mapping[str, Access]:
    """The row for each method of a route."""
    found = {}
    for method in route.methods or ():
        name = f"{'GET' if method == 'HEAD' else method} {route.path}"
        if name not in rows:
            raise LookupError(f"{name}: has no row in fedcombiner/access/table.py")
        found[method] = rows[name]
    return found
