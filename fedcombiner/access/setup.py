"""Access control of one process, put together."""

from __future__ import annotations

from typing import Final

import structlog
from starlette.applications import Starlette

from fedcombiner.access.gate import Gate
from fedcombiner.access.http import Protected, Refusal, refusal
from fedcombiner.access.interceptor import AccessInterceptor
from fedcombiner.access.known import KnownTokens
from fedcombiner.access.policy import Policy
from fedcombiner.access.store import TokenReader
from fedcombiner.access.table import Listener
from fedcombiner.servicekit.errors import StartupError
from fedcombiner.servicekit.health import Health
from fedcombiner.servicekit.lifecycle import Supervisor
from fedcombiner.servicekit.metrics import Metrics

log = structlog.get_logger(__name__)

BACKEND: Final = "redis"


class AccessControl:
    """What the servers of a process ask of their callers.

    `reader` is where tokens are, and stays the caller's to close; None: only those in the settings count.

    Raises:
        StartupError: clients need tokens, and there are none that they could have.
    """

    def __init__(self, policy: Policy, metrics: Metrics, health: Health, reader: TokenReader | None) -> None:
        if policy.client_tokens and reader is None:
            raise StartupError(
                "clients need tokens, and those are in Redis: set REDIS_URL, or REQUIRE_CLIENT_TOKENS=false"
            )
        self.policy = policy
        used = reader if policy.enforced else None
        backend = health.backends.register(BACKEND) if used else None
        self.tokens = KnownTokens(policy.fixed, used, backend=backend)
        self._gate = Gate(policy, self.tokens, metrics)
        self.interceptors = [AccessInterceptor(self._gate)]

    def protect(self, app: Starlette, listener: Listener, refuse: Refusal = refusal) -> Protected:
        """The application behind the gate. Raises LookupError if a route of it has no row in the table."""
        return Protected(app, self._gate, listener, refuse)

    def start(self, supervisor: Supervisor) -> None:
        """Keep the tokens up to date from now on."""
        if self.policy.enforced:
            log.info("tokens are asked for", clients_too=self.policy.client_tokens)
            supervisor.spawn("tokens", self.tokens.run(self._gate.look))
