"""Where tokens are kept: what the services need from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from fedcombiner.access.record import TokenRecord


class TokensUnavailable(Exception):
    """Where the tokens are is away for now; says why."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All tokens, by digest, at one moment. Two with the same `version` are the same."""

    version: str
    tokens: Mapping[str, TokenRecord]


class TokenReader(Protocol):
    async def load(self, known: str = "") -> Snapshot | None:
        """All tokens; None if they are those of version `known` still. Raises TokensUnavailable."""
        ...

    async def aclose(self) -> None: ...


class TokenStore(TokenReader, Protocol):
    async def put(self, digest: str, record: TokenRecord, *, forget: Collection[str] = ()) -> None:
        """Add a token or replace its record, and drop those of `forget`, in one step that may be repeated.

        Raises TokensUnavailable; whether it happened is not known then.
        """
        ...
