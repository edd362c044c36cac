"""Whether the modelstores are there: clients need them, and a combiner would not miss them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Final

import httpx
import structlog

from fedcombiner.servicekit.binding import host_port

log = structlog.get_logger()

ANSWER_S: Final = 1.0

Address = tuple[str, int]


class Modelstores:
    """`places`: HOST:PORT where each answers /readyz. A name may stand for several, as that of a headless
    service does; one that has IPv4 and IPv6 addresses is asked at those of IPv4, where services listen
    unless they are told otherwise.
    """

    def __init__(self, places: Sequence[str]) -> None:
        self._places = [(host, int(port)) for host, _, port in (place.rpartition(":") for place in places)]
        self._http = httpx.AsyncClient(timeout=ANSWER_S, trust_env=False)
        self._known: set[Address] = set()
        self._were_away = False

    async def away(self) -> bool:
        """Look at all of them now. True also when one that was there the last time is no longer listed."""
        if not self._places:
            return False
        found = await asyncio.gather(*(_addresses(place) for place in self._places))
        listed = {address for addresses in found for address in addresses}
        vanished, self._known = self._known - listed, listed
        ready = await asyncio.gather(*map(self._is_ready, listed))
        away = bool(vanished) or not all(found) or not all(ready)
        if away is not self._were_away:
            self._were_away = away
            log.warning("a modelstore is away" if away else "all modelstores are there")
        return away

    async def _is_ready(self, address: Address) -> bool:
        try:
            return (await self._http.get(f"http://{host_port(*address)}/readyz")).status_code == 200
        except httpx.HTTPError:
            return False

    async def aclose(self) -> None:
        await self._http.aclose()


async def _addresses(named: Address) -> list[Address]:
    """Empty: nobody has this name."""
    host, port = named
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    families = {family for family, *_ in found}
    wanted = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
    return [(str(address[0]), int(address[1])) for family, *_, address in found if family == wanted]
