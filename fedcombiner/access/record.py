"""What the stack keeps of a token, beside its hash."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from fedcombiner.access.roles import Role


class TokenRecord(BaseModel):
    """What is known of a token; times are seconds since 1970.

    Attributes:
        clients: the clients that its bearer may be; empty: any. Of the role `client` only.
        expires, revoked: None: never, and not.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    role: Role
    name: str = ""
    clients: tuple[str, ...] = ()
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None

    def trouble(self, now: float) -> str:
        """Why it is not good any more; empty if it is."""
        if self.revoked is not None:
            return "Token revoked"
        # In these words: FEDn's clients of 0.9 and later look for a new token when they read them.
        return "Token expired" if self.expires is not None and self.expires <= now else ""
