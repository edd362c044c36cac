"""The combiner's side of the announce step: telling a discovery that it is there, again and again.

What FEDn's own connector does once at start, with the same request. A discovery that is away, restarts or
says "later" only delays the next attempt: clients that know the address are served all along.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import httpx
import structlog

from combiner.answers import Answer, Status, read_answer
from fedcombiner.servicekit.backoff import Backoff
from fedcombiner.servicekit.errors import StartupError, printable
from fedcombiner.wire.announcement import ACTIVE_CLIENTS_HEADER, MAX_CLIENTS_HEADER

__all__ = ["Announcer", "Answer", "Load", "Status"]

log = structlog.get_logger(__name__)

INTERVAL_S: Final = 30.0
TIMEOUT_S: Final = 10.0
RETRIES: Final = Backoff(initial=1.0, maximum=10.0)

# What no waiting changes at the start, and what to do about it.
FINAL: Final = {
    Status.UnAuthorized: "DISCOVERY_TOKEN must be a combiner's token that is known there",
    Status.UnMatchedConfig: "NAME, ADVERTISE and DISCOVERY_URL are what it is about",
}


@dataclass(frozen=True, slots=True)
class Load:
    """How many clients are active in the whole stack, and how many there may be."""

    active_clients: int
    max_clients: int


class Announcer:
    """Announces one combiner, whose clients reach it at `advertise` (HOST:PORT), to the discovery at `url`.

    `secure`: clients reach it over TLS. `trust`: whom to believe at an https `url`; None: public authorities.

    Raises:
        StartupError: `advertise` is no HOST:PORT.
    """

    def __init__(
        self,
        url: str,
        name: str,
        advertise: str,
        *,
        token: str = "",
        secure: bool = False,
        trust: ssl.SSLContext | None = None,
        fqdn: str | None = None,
        interval: float = INTERVAL_S,
        retries: Backoff = RETRIES,
    ) -> None:
        host, port = _split(advertise)
        self._url = f"{url.rstrip('/')}/add_combiner"
        self._request = {
            "combiner_id": name,
            "address": host,
            "fqdn": fqdn,
            "port": port,
            "secure_grpc": secure,
        }
        self._headers = {"Authorization": f"Token {token}"} if token else {}
        self._trust = trust or httpx.create_ssl_context()
        self._interval = interval
        self._retries = retries
        self.last: Answer | None = None
        self.on_assigned: Callable[[Answer], None] = lambda answer: None  # called with each such answer
        self.load: Callable[[], Awaitable[Load | None]] | None = None  # what is told of the clients

    async def run(self) -> None:
        """Announce now, if that is still to be done, and every `interval` seconds; never returns.

        Once it was taken, a refusal is an error in the log, and only time or an operator can mend it.

        Raises:
            StartupError: it is refused at the first time.
        """
        answer = self.last if self.last and self.last.status is Status.Assigned else await self.first()
        if answer.status in FINAL:
            hint = FINAL[answer.status]
            raise StartupError(
                f"the discovery at {self._url} refuses this combiner: {answer.message}; {hint}"
            )
        while True:
            await asyncio.sleep(self._interval)
            await self.first()

    async def first(self) -> Answer:
        """Announce, with growing delays, until the discovery has taken this combiner or refused it."""
        for delay in self._retries.delays():
            answer = await self.announce()
            if answer.status in (Status.Assigned, *FINAL):
                return answer
            await asyncio.sleep(delay)
        raise AssertionError("the delays have no end")

    async def announce(self) -> Answer:
        """One attempt. Never raises for anything that a discovery or the network does."""
        try:
            async with asyncio.timeout(TIMEOUT_S), self._client() as http:
                headers = await self._load_headers()
                async with http.stream("POST", self._url, json=self._request, headers=headers) as response:
                    answer = await read_answer(response)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            answer = Answer(Status.Unassigned, str(error) or type(error).__name__)
        if self.last is None or self.last.status is not answer.status:
            self._log(answer)
        self.last = answer
        if answer.status is Status.Assigned:
            self.on_assigned(answer)
        return answer

    def _client(self) -> httpx.AsyncClient:
        # Only mains read the environment, so no proxies from there.
        return httpx.AsyncClient(
            headers=self._headers,
            timeout=TIMEOUT_S,
            follow_redirects=True,
            trust_env=False,
            verify=self._trust,
        )

    async def _load_headers(self) -> dict[str, str]:
        load = await self.load() if self.load else None
        if load is None:
            return {}
        return {ACTIVE_CLIENTS_HEADER: str(load.active_clients), MAX_CLIENTS_HEADER: str(load.max_clients)}

    def _log(self, answer: Answer) -> None:
        known = {"discovery": self._url, "status": answer.status.name}
        if answer.status is Status.Assigned:
            log.info("announced", **known)
        elif answer.status in FINAL:
            log.error("the discovery refuses this combiner", reason=answer.message, **known)
        else:
            log.warning("not announced yet", reason=answer.message, **known)


def _split(advertise: str) -> tuple[str, int]:
    host, _, port = advertise.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise StartupError(
            f"ADVERTISE='{printable(advertise)}': must be HOST:PORT to announce to a discovery"
        )
    return host, int(port)
