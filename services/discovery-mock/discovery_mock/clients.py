"""The assign step: which combiner a client goes to, in the words of its generation."""

from __future__ import annotations

import structlog
from starlette.requests import Request

from discovery_mock.catalog import PackageCatalog
from discovery_mock.helpers import HelperChoice
from discovery_mock.messages import (
    ClientRequest,
    Package,
    assigned,
    in_short,
    not_yet,
    parse_add_client,
    parse_assign,
    parse_new_client,
)
from discovery_mock.registry import CombinerRegistry
from discovery_mock.web import TRY_LATER, Answer, body_of
from fedcombiner.access.http import admitted
from fedcombiner.modelstorage.store import STORE_AWAY

log = structlog.get_logger(__name__)


class ClientDesk:
    """Answers clients that look for a combiner.

    `package` is where clients have their compute package from that do not say it; `certificate`: what they
    trust at a combiner that speaks TLS, PEM in base64.
    """

    def __init__(
        self,
        registry: CombinerRegistry,
        catalog: PackageCatalog,
        helpers: HelperChoice,
        *,
        package: Package,
        certificate: str | None,
    ) -> None:
        self._registry = registry
        self._catalog = catalog
        self._helpers = helpers
        self._package = package
        self._certificate = certificate

    async def assign(self, request: Request) -> Answer:
        """`GET /assign`, of 0.5."""
        return await self._answer(request, parse_assign(request.query_params))

    async def add_client(self, request: Request) -> Answer:
        """`POST /add_client`, of 0.6 to 0.20."""
        authorization = request.headers.get("authorization", "")
        return await self._answer(request, parse_add_client(await body_of(request), authorization))

    async def add(self, request: Request) -> Answer:
        """`POST /api/v1/clients/add`, of 0.21 and newer."""
        return await self._answer(request, parse_new_client(await body_of(request)))

    async def _answer(self, request: Request, client: ClientRequest) -> Answer:
        sender = admitted(request.scope)
        if sender:
            sender.check_client(client.name)
        package = client.package or self._package
        missing = await self._missing(package)
        asker = _sender(request)
        combiner = None if missing else self._registry.choose(client.name, client.preferred_combiner, asker)
        if combiner is None:
            # FEDn says 400 to some of these, and its clients exit: a restart would lose them all.
            return TRY_LATER, not_yet(missing or self._why_none(client), package)
        helper = await self._helpers.choose(client.name, client.generation, combiner, asker)
        log.info(
            "client assigned",
            client=client.name,
            generation=client.generation.value,
            combiner=combiner.name,
            helper=helper,
        )
        certificate = self._certificate if combiner.secure and not combiner.fqdn else None
        answer = assigned(combiner, client, helper=helper, package=package, certificate=certificate)
        return 200, in_short(answer) if _is_android(request) else answer

    async def _missing(self, package: Package) -> str:
        if package == "local":
            return ""
        try:
            active = await self._catalog.active()
        except STORE_AWAY as error:
            return f"The compute package cannot be looked up now: {error.message}."
        return "" if active else "No compute package is set yet: `combiner package put` sets one."

    def _why_none(self, client: ClientRequest) -> str:
        preferred = client.preferred_combiner
        if preferred:
            there = self._registry.find(preferred)
            return f"Combiner {preferred} {'has no room now' if there else 'is not available yet'}."
        return f"No combiner {'has room now' if self._registry.live() else 'is available yet'}."


def _sender(request: Request) -> str:
    """The sender of a request: its token, else its address."""
    token = admitted(request.scope)
    if token is not None:
        return token.key
    return request.client.host if request.client else ""


def _is_android(request: Request) -> bool:
    """By its HTTP library, Ktor, which no other client of FEDn has."""
    return request.headers.get("user-agent", "").lower().startswith("ktor")
