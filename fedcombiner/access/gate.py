"""Letting a caller in or not, and noticing when one that is in has lost the right to be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from fedcombiner.access.known import KnownTokens
from fedcombiner.access.policy import Policy
from fedcombiner.access.record import TokenRecord
from fedcombiner.access.roles import Role
from fedcombiner.access.secret import digest, presented
from fedcombiner.access.table import Access
from fedcombiner.servicekit.errors import PermissionDenied, ServiceError, Unauthenticated, Unavailable, shown
from fedcombiner.servicekit.metrics import Metrics

REASONS: Final = ("unauthenticated", "permission_denied", "unavailable")


class Gate:
    """Decides by policy, table and tokens. One for all servers of a process."""

    def __init__(
        self,
        policy: Policy,
        tokens: KnownTokens,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._policy = policy
        self._tokens = tokens
        self._clock = clock
        self._streams: dict[str, set[asyncio.Timeout]] = {}
        self._refused = metrics.counters(
            "access_refused_total", "Calls refused for want of a right token.", reason=REASONS
        )

    def is_open(self, access: Access) -> bool:
        """Whether this is for everybody, with any token or none."""
        if access.anyone or not self._policy.enforced:
            return True
        return Role.CLIENT in access.roles and not self._policy.client_tokens

    async def admit(self, access: Access, authorization: str | None) -> Pass:
        """Let the bearer of the token in this header pass.

        Raises:
            Unauthenticated: there is no token, or none that is good.
            PermissionDenied: its role is not among those of `access`.
            Unavailable: the token cannot be checked now.
        """
        try:
            key = digest(presented(authorization))
            found = self._good(await self._tokens.find(key))
            if found.role not in access.roles:
                allowed = ", ".join(sorted(access.roles)) or "nobody"
                raise PermissionDenied(f"a token of role {found.role} may not do this; allowed: {allowed}")
        except ServiceError as error:
            self.count(error)
            raise
        return Pass(key, found)

    def count(self, error: ServiceError) -> None:
        self._refused.labels(error.code.name.lower()).inc()

    @asynccontextmanager
    async def watched(self, admitted: Pass) -> AsyncIterator[None]:
        """A block that is left with Unauthenticated some seconds after the token stops being good."""
        try:
            async with asyncio.timeout(None) as limit:
                self._streams.setdefault(admitted.key, set()).add(limit)
                try:
                    yield
                finally:
                    self._forget(admitted.key, limit)
        except TimeoutError:
            if not limit.expired():
                raise
            self._good(self._tokens.get(admitted.key))
            raise Unavailable("the token was not good for a moment; try again") from None

    def look(self) -> None:
        """End the streams of tokens that are not good any more."""
        now = asyncio.get_running_loop().time()
        for key, limits in self._streams.items():
            record = self._tokens.get(key)
            if record is None or record.trouble(self._clock()):
                for limit in limits:
                    if not limit.expired():
                        limit.reschedule(now)

    def _good(self, record: TokenRecord | None) -> TokenRecord:
        if record is None:
            raise Unauthenticated("the token is not known")
        trouble = record.trouble(self._clock())
        if trouble:
            raise Unauthenticated(trouble)
        return record

    def _forget(self, key: str, limit: asyncio.Timeout) -> None:
        limits = self._streams[key]
        limits.discard(limit)
        if not limits:
            del self._streams[key]


class Pass:
    """Somebody who was let in. `key` is the digest of the token."""

    __slots__ = ("_record", "key")

    def __init__(self, key: str, record: TokenRecord) -> None:
        self.key = key
        self._record = record

    @property
    def role(self) -> Role:
        return self._record.role

    @property
    def is_bound(self) -> bool:
        """Whether the token is good for certain clients only."""
        return bool(self._record.clients)

    def check_client(self, name: str) -> None:
        """Raises PermissionDenied if the token is bound to other clients than this."""
        bound = self._record.clients
        if bound and name not in bound:
            raise PermissionDenied(f"this token is not one of client {shown(name)}")
