"""Finding a combiner: by its address, or by asking discovery as FEDn's clients do."""

from __future__ import annotations

import base64
import logging
import ssl
from dataclasses import dataclass
from typing import Any, Final

import httpx

from fedcombiner.client.errors import JoinRefused, ServerUnreachable
from fedcombiner.client.link import host_of
from fedcombiner.client.trust import Trust
from fedcombiner.servicekit.backoff import Backoff, retry
from fedcombiner.servicekit.binding import is_loopback
from fedcombiner.servicekit.errors import printable
from fedcombiner.servicekit.replies import host_in, json_object, over_https

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
        trust: whose certificates to believe there; None: it is spoken to without TLS.
    """

    address: str
    host: str
    trust: Trust | None = None

    @classmethod
    def at(cls, address: str, trust: Trust | None = None) -> Assignment:
        """A combiner whose address is known."""
        return cls(address, host_of(address), trust)


async def join(
    discovery: str,
    name: str,
    *,
    token: str | None = None,
    preferred_combiner: str | None = None,
    trust: Trust | None = None,
    give_up_after: float | None = None,
    backoff: Backoff = _BACKOFF,
) -> Assignment:
    """Ask the discovery service at the URL `discovery` which combiner to go to.

    While there is none yet (203), or discovery is away or overloaded, it is asked again.

    `trust` is for an https `discovery`, and for the combiner, which has to speak TLS then. A certificate in
    the assignment is the only one to believe at the combiner, as for FEDn's clients; but where a trust was
    given, only if it came over https, for anyone on the way could have put another one there.

    Raises:
        JoinRefused: this client is not wanted (400, 401, and every other 4xx), the answer makes no sense, or
            `discovery` is no http or https URL.
        ServerUnreachable: there was no assignment for `give_up_after` seconds; None: ask for ever.
    """
    headers = {"Authorization": f"Token {token}"} if token else {}
    host = host_in(discovery)
    if not host:
        raise JoinRefused(f"{printable(discovery)} is not an http or https URL")
    # This library brings along what it computes, so there need be no compute package.
    body = {"client_id": name, "preferred_combiner": preferred_combiner, "package": "local"}
    url = f"{discovery.rstrip('/')}/add_client"
    async with httpx.AsyncClient(
        headers=headers,
        timeout=_TIMEOUT,
        trust_env=not is_loopback(host),
        follow_redirects=True,
        verify=True if trust is None else trust.context(),
    ) as http:

        async def ask() -> Assignment:
            try:
                response = await http.post(url, json=body)
            except httpx.TransportError as error:
                level = logging.WARNING if _refused_certificate(error) else logging.INFO
                raise _not_yet(discovery, str(error) or type(error).__name__, level) from error
            return _read(discovery, response, trust)

        return await retry(ask, on=ServerUnreachable, timeout=give_up_after, backoff=backoff)


def _read(discovery: str, response: httpx.Response, trust: Trust | None) -> Assignment:
    body = json_object(response.content)
    message = printable(str(body.get("message") or response.reason_phrase))
    code = response.status_code
    if code in _RETRY_CODES or code >= 500 or body.get("status") == "retry":
        raise _not_yet(discovery, f"{code} {message}")
    if code != 200:
        raise JoinRefused(f"discovery at {discovery} refused this client: {code} {message}")
    try:
        return _assignment(body, trust, verified=over_https(response))
    except (KeyError, TypeError, ValueError) as error:
        raise JoinRefused(
            f"discovery at {discovery} sent an assignment that makes no sense: {error!r}"
        ) from error


def _assignment(body: dict[str, Any], trust: Trust | None, *, verified: bool) -> Assignment:
    host, fqdn, certificate = str(body["host"]), body.get("fqdn"), body.get("certificate")
    address = f"{fqdn}:443" if fqdn else f"{host}:{int(body['port'])}"
    if certificate and (verified or trust is None):
        trust = Trust(base64.b64decode(certificate, validate=True))
    elif fqdn:
        trust = trust or Trust()
    return Assignment(address, host, trust)


def _refused_certificate(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def _not_yet(discovery: str, detail: str, level: int = logging.INFO) -> ServerUnreachable:
    logger.log(level, "discovery at %s: %s", discovery, detail)
    return ServerUnreachable(discovery, detail)
