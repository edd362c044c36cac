"""TLS of a combiner with the certificate and key that its discovery hands out, as FEDn's controller did."""

from __future__ import annotations

import structlog

from combiner.announce import Announcer, Answer, Status
from fedcombiner.servicekit.certificates import BadKeyPair, KeyPair
from fedcombiner.servicekit.errors import StartupError
from fedcombiner.servicekit.tls import ServerIdentity

log = structlog.get_logger()

SETTING = "TLS_FROM_DISCOVERY"


async def announced_identity(announcer: Announcer) -> ServerIdentity:
    """Announce until the discovery, which may be away, has answered. Later answers renew the certificate.

    Raises:
        StartupError: the discovery refuses this combiner, or its answer holds no certificate and key of use.
    """
    answer = await announcer.first()
    if answer.status is not Status.Assigned:
        raise StartupError(f"{SETTING}=true: the discovery refused this combiner: {answer.message}")
    try:
        identity = ServerIdentity(_pair(answer))
    except BadKeyPair as error:
        raise StartupError(
            f"{SETTING}=true: {error}; the discovery has to be given a certificate for its combiners, and"
            " DISCOVERY_TOKEN has to be one of role combiner"
        ) from None
    announcer.on_assigned = lambda later: _renew(identity, later)
    return identity


def _renew(identity: ServerIdentity, answer: Answer) -> None:
    try:
        identity.replace(_pair(answer))
    except BadKeyPair as error:
        log.warning("no TLS certificate in the discovery's answer; the old one stays", reason=str(error))


def _pair(answer: Answer) -> KeyPair:
    if not answer.private:
        raise BadKeyPair(
            "key", "the answer did not come over https all the way, others may have the key, too"
        )
    return KeyPair.from_announcement(answer.body)
