"""Finding a combiner: by its address, or by asking discovery as FEDn's clients do."""

from __future__ import annotations

import base64
import logging
from dataclasses import dataclass
from typing import Any, Final

import grpc
import httpx

from fedcombiner.client.errors import JoinRefused, ServerUnreachable
from fedcombiner.client.link import host_of, is_loopback
from fedcombiner.servicekit.backoff import Backoff, retry
from fedcombiner.servicekit.errors import printable

logger = logging.getLogger(__name__)

_BACKOFF: Final = Backoff(1.0, 5.0)
_TIMEOUT: Final = 10.0  # seconds an answer may take
_RETRY_CODES: Final = frozenset({203, 408, 425, 429})  # and every 5xx


@dataclass(frozen=True)
class Assignment:
    """The combiner to go to.

    Attributes:
        address: `host:port`.
        host: the combiner's own name, which gateways may route by.
        secure: TLS; with `certificate` (PEM) as the only root, else with the system's roots.
    """

    address: str
    host: str
    secure: bool = False
    certificate: bytes | None = None

    @classmethod
    def at(cls, address: str) -> Assignment:
        """A combiner without TLS whose address is known."""
        return cls(address, host_of(address))

    def credentials(self) -> grpc.ChannelCredentials | None:
        """What a channel to it needs; None without TLS."""
        return grpc.ssl_channel_credentials(self.certificate) if self.secure else None


async def join(
    discovery: str,
    name: str,
    *,
    token: str | None = None,
    preferred_combiner: str | None = None,
    give_up_after: float | None = None,
    backoff: Backoff = _BACKOFF,
) -> Assignment:
    """Ask the discovery service at the URL `discovery` which combiner to go to.

    While there is none yet (203), or discovery is away or overloaded, it is asked again.

    Raises:
        JoinRefused: this client is not wanted (400, 401, and every other 4xx), the answer makes no sense, or
            `discovery` is no http or https URL.
        ServerUnreachable: there was no assignment for `give_up_after` seconds; None: ask for ever.
    """
    headers = {"Authorization": f"Token {token}"} if token else {}
    proxies = not is_loopback(_host(discovery))
    body = {"client_id": name, "preferred_combiner": preferred_combiner}
    url = f"{discovery.rstrip('/')}/add_client"
    async with httpx.AsyncClient(
        headers=headers, timeout=_TIMEOUT, trust_env=proxies, follow_redirects=True
    ) as http:

        async def ask() -> Assignment:
            try:
                response = await http.post(url, json=body)
            except httpx.TransportError as error:
                raise _not_yet(discovery, str(error) or type(error).__name__) from error
            return _read(discovery, response)

        return await retry(ask, on=ServerUnreachable, timeout=give_up_after, backoff=backoff)


def _host(discovery: str) -> str:
    try:
        url = httpx.URL(discovery)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise JoinRefused(f"{printable(discovery)} is not an http or https URL")
    return url.host


def _read(discovery: str, response: httpx.Response) -> Assignment:
    body = _json(response)
    message = printable(str(body.get("message") or response.reason_phrase))
    code = response.status_code
    if code in _RETRY_CODES or code >= 500 or body.get("status") == "retry":
        raise _not_yet(discovery, f"{code} {message}")
    if code != 200:
        raise JoinRefused(f"discovery at {discovery} refused this client: {code} {message}")
    try:
        return _assignment(body)
    except (KeyError, TypeError, ValueError) as error:
        raise JoinRefused(
            f"discovery at {discovery} sent an assignment that makes no sense: {error!r}"
        ) from error


def _assignment(body: dict[str, Any]) -> Assignment:
    host, certificate = str(body["host"]), body.get("certificate")
    if body.get("fqdn"):
        return Assignment(f"{body['fqdn']}:443", host, secure=True)
    address = f"{host}:{int(body['port'])}"
    if certificate:
        return Assignment(
            address, host, secure=True, certificate=base64.b64decode(certificate, validate=True)
        )
    return Assignment(address, host)


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _not_yet(discovery: str, detail: str) -> ServerUnreachable:
    logger.info("discovery at %s: %s", discovery, detail)
    return ServerUnreachable(discovery, detail)
