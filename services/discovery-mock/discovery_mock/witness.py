"""Asking a combiner whether it knows a client."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from discovery_mock.registry import Combiner
from fedcombiner.client.clients import ClientsCalls
from fedcombiner.client.trust import Trust
from fedcombiner.servicekit.errors import ServiceError

log = structlog.get_logger(__name__)

TIMEOUT_S: Final = 2.0


class AskingWitness:
    """`helpers.Witness`. Asks the combiner at the address that it announced, as a controller.

    `trust` is for combiners that speak TLS.
    """

    def __init__(self, token: str, trust: Trust) -> None:
        self._token = token or None
        self._trust = trust

    async def heard_lately(self, combiner: Combiner, client: str, seconds: float) -> bool:
        address = f"{combiner.fqdn}:443" if combiner.fqdn else f"{combiner.address}:{combiner.port}"
        trust = self._trust if combiner.secure or combiner.fqdn else None
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                ClientsCalls(address, trust=trust, token=self._token) as controller,
            ):
                found = await controller.find_clients([client])
        except (ServiceError, TimeoutError) as error:
            log.warning("cannot ask a combiner for a client", combiner=combiner.name, reason=str(error))
            return False
        return any(0 <= record.seen_seconds_ago <= seconds for record in found)
