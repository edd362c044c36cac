"""The combiner's side of the announce step: telling a discovery that it is there, again and again.

What FEDn's own connector does once at start, with the same request and the same reading of the answers. A
discovery that is away, restarts or says "later" only delays the next attempt: clients that know the address
are served all along.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

import httpx
import structlog

from fedcombiner.servicekit.backoff import Backoff
from fedcombiner.servicekit.errors import StartupError, printable

log = structlog.get_logger(__name__)

INTERVAL_S: Final = 30.0
TIMEOUT_S: Final = 10.0
MAX_ANSWER_BYTES: Final = 64 * 1024
RETRIES: Final = Backoff(initial=1.0, maximum=10.0)


class Status(IntEnum):
    """What became of an announcement; names and numbers are FEDn's."""

    Unassigned = 0  # no answer, or none that makes sense: tried again
    Assigned = 1
    TryAgain = 2  # the discovery said so
    UnAuthorized = 3
    UnMatchedConfig = 4


# Nothing that waiting could change.
FINAL: Final = (Status.UnAuthorized, Status.UnMatchedConfig)


@dataclass(frozen=True, slots=True)
class Answer:
    """`body` is the discovery's JSON object; `message` says for a person why it is not Assigned.

    `private`: it came over https all the way.
    """

    status: Status
    message: str = ""
    body: Mapping[str, Any] = field(default_factory=dict)
    private: bool = False


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
        self._trust = trust
        self._interval = interval
        self._retries = retries
        self.last: Answer | None = None
        self.on_assigned: Callable[[Answer], None] = lambda answer: None  # called with each such answer

    async def run(self) -> None:
        """Announce now and every `interval` seconds. Returns only when the discovery refuses it."""
        async with self._client() as http:
            while True:
                answer = await self._settle(http)
                if answer.status in FINAL:
                    return
                await asyncio.sleep(self._interval)

    async def first(self) -> Answer:
        """Announce until the discovery has taken this combiner or refused it."""
        async with self._client() as http:
            return await self._settle(http)

    async def announce(self) -> Answer:
        """One attempt. Never raises for anything that a discovery or the network does."""
        async with self._client() as http:
            return await self._attempt(http)

    def _client(self) -> httpx.AsyncClient:
        # Only mains read the environment, so no proxies from there.
        return httpx.AsyncClient(
            headers=self._headers,
            timeout=TIMEOUT_S,
            follow_redirects=True,
            trust_env=False,
            verify=True if self._trust is None else self._trust,
        )

    async def _settle(self, http: httpx.AsyncClient) -> Answer:
        for delay in self._retries.delays():
            answer = await self._attempt(http)
            if answer.status in (Status.Assigned, *FINAL):
                return answer
            await asyncio.sleep(delay)
        raise AssertionError("the delays have no end")

    async def _attempt(self, http: httpx.AsyncClient) -> Answer:
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                http.stream("POST", self._url, json=self._request) as response,
            ):
                answer = _answer(response, await _body(response))
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            answer = Answer(Status.Unassigned, str(error) or type(error).__name__)
        if self.last is None or self.last.status is not answer.status:
            self._log(answer)
        self.last = answer
        if answer.status is Status.Assigned:
            self.on_assigned(answer)
        return answer

    def _log(self, answer: Answer) -> None:
        known = {"discovery": self._url, "status": answer.status.name}
        if answer.status is Status.Assigned:
            log.info("announced", **known)
        elif answer.status in FINAL:
            log.error(
                "discovery refused this combiner; not announcing any more", reason=answer.message, **known
            )
        else:
            log.warning("not announced yet", reason=answer.message, **known)


async def _body(response: httpx.Response) -> bytes:
    """The first MAX_ANSWER_BYTES of it, which do not parse if there are more."""
    body = b""
    async for part in response.aiter_bytes():
        body += part
        if len(body) > MAX_ANSWER_BYTES:
            break
    return body[:MAX_ANSWER_BYTES]


def _answer(response: httpx.Response, text: bytes) -> Answer:
    """Read as by FEDn's connector; only, a success without a status is none."""
    code = response.status_code
    body = _object(text)
    message = printable(str(body.get("message") or f"HTTP {code} {response.reason_phrase}"))
    if code == 400:
        return Answer(Status.UnMatchedConfig, message, body)
    if code == 401:
        return Answer(Status.UnAuthorized, message, body)
    if 200 <= code <= 203 and "status" in body:
        retry = body["status"] == "retry"
        private = all(step.url.scheme == "https" for step in (*response.history, response))
        return Answer(Status.TryAgain, message, body) if retry else Answer(Status.Assigned, "", body, private)
    return Answer(Status.Unassigned, message, body)


def _object(text: bytes) -> Mapping[str, Any]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _split(advertise: str) -> tuple[str, int]:
    host, _, port = advertise.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise StartupError(
            f"ADVERTISE='{printable(advertise)}': must be HOST:PORT to announce to a discovery"
        )
    return host, int(port)
