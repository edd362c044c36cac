"""What a combiner can be told."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final, Self

from pydantic import Field, SecretStr, model_validator

from fedcombiner.access.policy import AccessSettings
from fedcombiner.modelstorage.settings import StoreSettings
from fedcombiner.servicekit.settings import Port, Seconds

_PLACE: Final = r"(\[[0-9A-Fa-f:.]+\]|[^:,\s\[\]]+):[0-9]{1,5}"  # an IPv6 address stands in brackets


class CombinerSettings(StoreSettings, AccessSettings):
    port: Port = Field(12080, description="TCP port, 0 to 65535 (0: any free port)")
    name: str = Field(
        "combiner",
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="1 to 64 letters, digits, '_' and '-'; the same for all replicas",
    )
    redis_url: SecretStr = Field(
        SecretStr("redis://localhost:6379/0"),
        description="redis://[user[:password]@]host:port/db or unix:///path",
    )
    redis_wait: int = Field(
        0,
        ge=0,
        le=10,
        description="replicas of Redis that must have an update before it is confirmed, 0 to 10",
    )
    advertise: str = Field(
        "",
        pattern=rf"^(|{_PLACE})$",
        description="HOST:PORT that clients reach the combiner at; the gateway's",
    )
    tls_from_discovery: bool = Field(
        False,
        description="true: certificate and key come with the answer of an https DISCOVERY_URL; true or false",
    )
    advertise_fqdn: str = Field(
        "",
        pattern=r"^[A-Za-z0-9.-]{0,253}$",
        description="name that the discovery sends clients to instead, over TLS at port 443; empty: none",
    )
    advertise_tls: bool = Field(
        False, description="true: clients reach ADVERTISE over TLS, which a gateway ends; true or false"
    )
    discovery_url: str = Field(
        "",
        pattern=r"^(|https?://\S+)$",
        description="http(s)://HOST:PORT of the discovery to announce to; empty: none",
    )
    discovery_ca_file: Path | None = Field(
        None,
        description="PEM file of the authorities to trust at an https DISCOVERY_URL; unset: the system's",
    )
    discovery_token: SecretStr = Field(SecretStr(""), description="token for the announcement")
    modelstores: str = Field(
        "",
        pattern=rf"^(|{_PLACE}(,{_PLACE})*)$",
        description="HOST:PORT,... where the modelstores answer /readyz; empty: they are not looked at",
    )
    max_clients: int = Field(
        10_000, ge=1, le=1_000_000, description="clients up to which AcceptingClients says yes, 1 to 1000000"
    )
    max_running_jobs: int = Field(
        1, ge=1, le=100, description="jobs that run at once in the whole stack, 1 to 100"
    )
    fold_slots: int = Field(
        2, ge=1, le=64, description="updates that are checked and folded at once, 1 to 64"
    )
    update_hold_seconds: Seconds = Field(
        60.0, description="seconds that SendModelUpdate is held while a back end is away"
    )
    answer_hold_seconds: Seconds = Field(
        2.0, description="seconds that other answers are held while a back end is away"
    )
    housekeeping_seconds: float = Field(
        3600.0, ge=0, le=86_400, description="seconds between two house-keepings, 0 to 86400 (0: none)"
    )

    @model_validator(mode="after")
    def _one_certificate(self) -> Self:
        if not self.tls_from_discovery:
            return self
        if not self.discovery_url.startswith("https://"):
            raise ValueError(
                "TLS_FROM_DISCOVERY=true needs an https DISCOVERY_URL: a key must not be overheard"
            )
        if self.tls_cert_file is not None:
            raise ValueError("give either TLS_FROM_DISCOVERY=true or TLS_CERT_FILE, not both")
        return self

    @property
    def modelstore_places(self) -> list[str]:
        return self.modelstores.split(",") if self.modelstores else []

    @property
    def serves_tls(self) -> bool:
        return self.tls_from_discovery or super().serves_tls

    @property
    def advertises_tls(self) -> bool:
        """Whether clients have to speak TLS: with this process, or with what stands in front of it."""
        return self.advertise_tls or self.serves_tls


def replica_name() -> str:
    """Unique for each process that ever ran: a restarted replica is another one."""
    return f"{socket.gethostname()[:32]}-{os.getpid()}-{os.urandom(4).hex()}"
