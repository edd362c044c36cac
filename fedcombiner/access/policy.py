"""Whether tokens are asked for at all: decided once, at the start, from the settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

import structlog
from pydantic import Field, SecretStr, model_validator

from fedcombiner.access.record import TokenRecord
from fedcombiner.access.roles import Role
from fedcombiner.access.secret import digest
from fedcombiner.servicekit.binding import is_loopback
from fedcombiner.servicekit.errors import StartupError
from fedcombiner.servicekit.settings import ServiceSettings, with_password

log = structlog.get_logger(__name__)

_OWN_TOKEN: Final = re.compile(r"[!-~]{20,500}")
BOOTSTRAP: Final = "settings"
HOW: Final = (
    "set OPERATOR_TOKEN_FILE or OPERATOR_TOKEN (`combiner token generate` prints a new one), listen on"
    " 127.0.0.1, or say INSECURE=true (--insecure) to let everybody in"
)


class AccessSettings(ServiceSettings):
    """The settings about tokens, the same for every service of a stack."""

    operator_token: SecretStr = Field(SecretStr(""), description="20 to 500 characters without spaces")
    operator_token_file: Path | None = Field(
        None, description="file whose first line is the operator's token"
    )
    insecure: bool = Field(False, description="true lets everybody in, whatever the address")
    require_client_tokens: bool | None = Field(
        None, description="true or false; unset: true with TLS, false in plaintext"
    )
    redis_url: SecretStr = Field(
        SecretStr(""),
        description="redis://[user[:password]@]host:port/db or unix:///path; empty: no tokens there",
    )
    redis_password: SecretStr = Field(
        SecretStr(""), description="password for REDIS_URL as it is; one in the URL must be percent-encoded"
    )

    @model_validator(mode="after")
    def _one_redis_password(self) -> Self:
        try:
            _ = self.redis_address
        except ValueError:
            raise ValueError(
                "REDIS_URL cannot be read, or has another password than REDIS_PASSWORD: leave the password"
                " out of the URL"
            ) from None
        return self

    @property
    def redis_address(self) -> str:
        """REDIS_URL with REDIS_PASSWORD in it."""
        url, password = self.redis_url.get_secret_value(), self.redis_password.get_secret_value()
        return with_password(url, password) if url and password else url

    @property
    def serves_tls(self) -> bool:
        """Whether this process speaks TLS itself."""
        return self.tls_cert_file is not None

    @property
    def listening(self) -> Mapping[str, str]:
        """The addresses of both ports, by setting."""
        return {"HOST": self.host, "METRICS_HOST": self.metrics_host}


@dataclass(frozen=True, slots=True)
class Policy:
    """What is asked of callers.

    Attributes:
        enforced: tokens are looked at; else everybody may call everything.
        client_tokens: what FEDn's clients call needs a token, too.
        fixed: tokens that count besides those in Redis, by digest.
    """

    enforced: bool
    client_tokens: bool
    fixed: Mapping[str, TokenRecord]

    def also(self, token: str, role: Role, name: str) -> Policy:
        """The same, with a token of this process's own, if tokens are looked at."""
        if not self.enforced:
            return self
        return replace(self, fixed={**self.fixed, digest(token): TokenRecord(id=name, role=role, name=name)})


def decide(settings: AccessSettings, listening: Mapping[str, str]) -> Policy:
    """What the settings mean.

    `listening` has the addresses that this process listens on, by the names of their settings.

    An operator's token switches enforcement on. Without one, everybody on this machine may call everything,
    and no other address is listened on unless INSECURE says so.

    Raises:
        StartupError: the settings contradict each other, or would let everybody in without saying so.
    """
    token = _operator_token(settings)
    if token and settings.insecure:
        raise StartupError("INSECURE=true contradicts OPERATOR_TOKEN: unset one of the two")
    if not token:
        return _open(settings, listening)
    wanted = settings.require_client_tokens
    client_tokens = settings.serves_tls if wanted is None else wanted
    operator = TokenRecord(id=BOOTSTRAP, role=Role.OPERATOR, name="OPERATOR_TOKEN")
    return Policy(enforced=True, client_tokens=client_tokens, fixed={digest(token): operator})


def _open(settings: AccessSettings, listening: Mapping[str, str]) -> Policy:
    if settings.require_client_tokens:
        raise StartupError(f"REQUIRE_CLIENT_TOKENS=true needs an operator's token: {HOW}")
    reachable = [f"{name}={host}" for name, host in listening.items() if not is_loopback(host)]
    if reachable and not settings.insecure:
        raise StartupError(f"{', '.join(reachable)}: others could call everything: {HOW}")
    if reachable:
        log.warning("everybody is let in, and may call everything", reason="INSECURE", listening=reachable)
    return Policy(enforced=False, client_tokens=False, fixed={})


def _operator_token(settings: AccessSettings) -> str:
    token, path = settings.operator_token.get_secret_value(), settings.operator_token_file
    if token and path:
        raise StartupError("OPERATOR_TOKEN and OPERATOR_TOKEN_FILE are both set: unset one of the two")
    name = "OPERATOR_TOKEN"
    if path:
        name = f"OPERATOR_TOKEN_FILE={path}"
        try:
            token = path.read_text("utf-8").partition("\n")[0].strip()
        except (OSError, UnicodeDecodeError) as error:
            raise StartupError(f"{name}: cannot be read: {error}") from None
    elif not token:
        return ""
    if not _OWN_TOKEN.fullmatch(token):
        raise StartupError(
            f"{name}: has {len(token)} characters; 20 to 500 visible ASCII ones are needed, without spaces"
            " (`combiner token generate` prints a new token)"
        )
    return token
