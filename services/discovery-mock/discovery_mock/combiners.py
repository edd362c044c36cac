"""The announce step: a combiner says where it is, and how many clients it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import structlog
from starlette.requests import Request

from discovery_mock.messages import Package, announced, not_yet, parse_announce
from discovery_mock.registry import Combiner, CombinerRegistry, RegistryFull
from discovery_mock.web import TRY_LATER, Answer, body_of

log = structlog.get_logger(__name__)

NETWORK_ID: Final = "federated-combiner"

PairFor = Callable[[Request], Mapping[str, str] | None]


class CombinerDesk:
    """Answers combiners. `pair_for`: the certificate and key that may go to the sender of a request."""

    def __init__(self, registry: CombinerRegistry, package: Package, pair_for: PairFor) -> None:
        self._registry = registry
        self._package = package
        self._pair_for = pair_for

    async def add_combiner(self, request: Request) -> Answer:
        """`POST /add_combiner`."""
        combiner = parse_announce(await body_of(request), request.headers)
        try:
            new = self._registry.announce(combiner)
        except RegistryFull:
            return TRY_LATER, not_yet("There are too many combiners.", self._package)
        if new:
            _log_new(combiner)
        return 200, announced(NETWORK_ID, self._pair_for(request) if combiner.secure else None)


def _log_new(combiner: Combiner) -> None:
    log.info(
        "combiner announced",
        combiner=combiner.name,
        address=combiner.address,
        port=combiner.port,
        secure=combiner.secure,
    )
