"""Tokens: random text that only its bearer knows. What the stack keeps of one is its SHA-256 and a record.

A fast hash is enough: the tokens made here have 256 random bits, so there is nothing to guess. A look-up by
the hash of what was presented also takes no time that depends on how much of it was right.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from typing import Final

from fedcombiner.servicekit.errors import Unauthenticated

PREFIX: Final = "fct_"
MAX_CHARS: Final = 512  # of an authorization header

_HEADER: Final = re.compile(r"(?i:token|bearer) +([!-~]+) *")

NEEDED: Final = (
    "a token is needed: send it as `authorization: Bearer TOKEN` (the command takes it from COMBINER_TOKEN)"
)
MALFORMED: Final = "authorization: must be `Token TOKEN` or `Bearer TOKEN`, once"


def new_token() -> str:
    """A token that nobody can guess."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def header(values: Sequence[str]) -> str | None:
    """One value of the authorization headers of a call; empty, which is no token, if there are several."""
    if not values:
        return None
    return values[0] if len(values) == 1 else ""


def presented(authorization: str | None) -> str:
    """The token in the value of an authorization header. Raises Unauthenticated; never says what it was."""
    if authorization is None:
        raise Unauthenticated(NEEDED)
    match = _HEADER.fullmatch(authorization) if len(authorization) <= MAX_CHARS else None
    if match is None:
        raise Unauthenticated(MALFORMED)
    return match[1]
