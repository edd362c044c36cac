"""FEDn's connector: the combiner announces itself to the network. A blocking face of `combiner.announce`."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

from combiner.announce import Announcer, Status
from fedcombiner.servicekit.loopthread import LoopThread

__all__ = ["ConnectorCombiner", "Status"]


class ConnectorCombiner:
    """Connector for announcing combiner to the FEDn network.

    Args:
        host: host of discovery service.
        port: port of discovery service; None or 0: the scheme's own.
        myhost: host of combiner, as its clients reach it.
        fqdn: fully qualified domain name of combiner, or None.
        myport: port of combiner.
        token: token for authentication, or None.
        name: name of combiner.
        secure: True if https is used, False if http.
        verify: True if certificate is verified, by the public authorities, False if not: then whoever
            stands in between can read the token.

    Raises:
        StartupError: `myhost` and `myport` are no address.
    """

    def __init__(
        self,
        host: str,
        port: int | None,
        myhost: str,
        fqdn: str | None,
        myport: int,
        token: str | None,
        name: str,
        secure: bool = False,
        verify: bool = False,
    ) -> None:
        scheme = "https" if secure else "http"
        self.connect_string = f"{scheme}://{host}:{port}" if port else f"{scheme}://{host}"
        self._announcer = Announcer(
            self.connect_string,
            name,
            f"{myhost}:{myport}",
            token=token or "",
            secure=secure,
            trust=None if verify else anybody(),
            fqdn=fqdn,
        )

    def announce(self) -> tuple[Status, Mapping[str, Any] | str]:
        """Announce once, in at most ten seconds. Never raises for what a discovery or the network does.

        Returns the status, and with Assigned the discovery's answer (`storage`, `statestore`, `certificate`,
        `key`), with every other one a message for a person.
        """
        with LoopThread("the announcement") as thread:
            answer = thread.call(self._announcer.announce())
        return answer.status, answer.body if answer.status is Status.Assigned else answer.message


def anybody() -> ssl.SSLContext:
    """Believe any certificate, as FEDn does without `verify`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
