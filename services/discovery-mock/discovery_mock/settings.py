"""What a discovery can be told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, StringConstraints, model_validator

from fedcombiner.access.policy import AccessSettings
from fedcombiner.modelstorage.settings import StoreSettings
from fedcombiner.servicekit.settings import Port, Seconds

HelperName = Annotated[str, StringConstraints(pattern=r"^[a-z]{1,64}$")]


class DiscoverySettings(AccessSettings, StoreSettings):
    port: Port = Field(8092, description="TCP port, 0 to 65535 (0: any free port)")
    data: Path = Field(Path("data/packages"), description="directory of the disk store")
    combiner_ttl: Seconds = Field(
        90.0, description="seconds after which a combiner that does not announce again is gone, more than 0"
    )
    helper_old: HelperName = Field(
        "kerashelper", description="helper that clients up to 0.7 load: kerashelper or pytorchhelper"
    )
    helper_new: HelperName = Field("numpyhelper", description="helper that clients from 0.8 on load")
    helper_by_name: Mapping[str, HelperName] = Field(
        {}, description='the helper of single clients, in JSON: {"client1": "numpyhelper"}'
    )
    package: Literal["remote", "local"] = Field(
        "remote",
        description="where clients that do not say it have their compute package from: remote or local",
    )
    max_package_bytes: int = Field(
        100 << 20, ge=1, le=10 << 30, description="bytes of the largest compute package, at least 1"
    )
    idle_seconds: Seconds = Field(
        60.0, description="seconds without progress after which a peer is cut off, more than 0"
    )
    store_seconds: Seconds = Field(
        30.0, description="seconds that a download waits for a store that is away, more than 0"
    )
    combiner_ca_file: Path | None = Field(
        None,
        description="PEM file of the authorities to trust at combiners that speak TLS, which clients are told"
        " to trust, too; unset: public ones",
    )
    combiner_cert_file: Path | None = Field(
        None,
        description="PEM file of the certificate that combiners get over https for a combiner's token; unset:"
        " they have their own",
    )
    combiner_key_file: Path | None = Field(
        None, description="PEM file of the private key that fits COMBINER_CERT_FILE"
    )
    combiner_token: SecretStr = Field(
        SecretStr(""), description="a controller's token, to ask combiners which clients they know"
    )

    @model_validator(mode="after")
    def _pair_is_complete(self) -> Self:
        if (self.combiner_cert_file is None) != (self.combiner_key_file is None):
            raise ValueError("COMBINER_CERT_FILE and COMBINER_KEY_FILE are needed together")
        return self
