"""Making, listing and revoking tokens."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

from fedcombiner.access.record import TokenRecord
from fedcombiner.access.roles import Role
from fedcombiner.access.secret import digest, new_token
from fedcombiner.access.store import TokenStore, TokensUnavailable
from fedcombiner.servicekit.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable, shown

MAX_TOKENS: Final = 10_000
MAX_NAME: Final = 64
MAX_CLIENTS: Final = 8
MAX_CLIENT_NAME: Final = 256
MIN_LIFETIME_S: Final = 60
MAX_LIFETIME_S: Final = 10 * 366 * 86_400


class TokenKeeper:
    """Tokens in a store that `told` is told of: the copy that this process goes by is renewed at once.

    There are MAX_TOKENS at most. When they are all there, the oldest of those that are not good any more
    makes room for a new one; if all are good, ResourceExhausted.

    Everything raises Unavailable while the store is away.
    """

    def __init__(
        self,
        store: TokenStore,
        told: Callable[[], Awaitable[None]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._told = told
        self._clock = clock

    async def create(
        self, role: str, *, name: str = "", clients: Sequence[str] = (), lifetime: int = 0
    ) -> tuple[str, TokenRecord]:
        """A new token, which is known to nobody else, and its record. `lifetime` in seconds; 0: for ever.

        Raises:
            InvalidArgument: one of these cannot be.
        """
        now = self._clock()
        record = TokenRecord(
            id=secrets.token_hex(6),
            role=_role(role),
            name=_name(name),
            clients=_clients(role, clients),
            created=now,
            expires=now + _lifetime(lifetime) if lifetime else None,
        )
        token = new_token()
        async with _explained():
            await self._store.put(digest(token), record, forget=_surplus(await self._all(), now))
            await self._told()
        return token, record

    async def list(self) -> list[TokenRecord]:
        """Oldest first."""
        async with _explained():
            return sorted((await self._all()).values(), key=lambda record: (record.created, record.id))

    async def revoke(self, token_id: str) -> TokenRecord:
        """Raises NotFound."""
        async with _explained():
            for key, record in (await self._all()).items():
                if record.id == token_id:
                    return await self._revoke(key, record)
        raise NotFound(f"token_id: there is no token {shown(token_id)}; `combiner token list` shows them")

    def state(self, record: TokenRecord) -> str:
        """One word: good, expired, revoked."""
        return record.trouble(self._clock()).removeprefix("Token ") or "good"

    async def _revoke(self, key: str, record: TokenRecord) -> TokenRecord:
        if record.revoked is None:
            record = record.model_copy(update={"revoked": self._clock()})
            await self._store.put(key, record)
            await self._told()
        return record

    async def _all(self) -> Mapping[str, TokenRecord]:
        snapshot = await self._store.load()
        assert snapshot is not None, "a load that names no version always answers"
        return snapshot.tokens


@asynccontextmanager
async def _explained() -> AsyncIterator[None]:
    try:
        yield
    except TokensUnavailable as error:
        raise Unavailable(f"{error}; try again") from error


def _surplus(tokens: Mapping[str, TokenRecord], now: float) -> list[str]:
    """Whose records make room for one more."""
    too_many = len(tokens) + 1 - MAX_TOKENS
    if too_many <= 0:
        return []
    dead = sorted((record.created, key) for key, record in tokens.items() if record.trouble(now))
    if len(dead) < too_many:
        raise ResourceExhausted(f"there are {len(tokens)} tokens; revoke some that nobody needs any more")
    return [key for _, key in dead[:too_many]]


def _role(role: str) -> Role:
    if role not in list(Role):
        raise InvalidArgument("role", role, ", ".join(Role))
    return Role(role)


def _name(name: str) -> str:
    if len(name) > MAX_NAME or not name.isprintable():
        raise InvalidArgument("name", name, f"at most {MAX_NAME} printable characters")
    return name


def _clients(role: str, clients: Sequence[str]) -> tuple[str, ...]:
    if clients and role != Role.CLIENT:
        raise InvalidArgument(
            "clients", clients[0], f"none for a token of role {role}; only clients' are bound"
        )
    if len(clients) > MAX_CLIENTS:
        raise InvalidArgument("clients", f"{len(clients)} names", f"at most {MAX_CLIENTS}")
    for client in clients:
        if not (0 < len(client) <= MAX_CLIENT_NAME and client.isprintable()):
            raise InvalidArgument("clients", client, f"1 to {MAX_CLIENT_NAME} printable characters")
    return tuple(clients)


def _lifetime(seconds: int) -> int:
    if not MIN_LIFETIME_S <= seconds <= MAX_LIFETIME_S:
        raise InvalidArgument(
            "lifetime_seconds",
            seconds,
            f"{MIN_LIFETIME_S} (a minute) to {MAX_LIFETIME_S} (ten years), or 0: for ever",
        )
    return seconds
