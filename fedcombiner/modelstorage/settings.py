"""Where models are, for every service that has them."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from fedcombiner.servicekit.settings import ServiceSettings


class StoreSettings(ServiceSettings):
    """The settings that choose a store and bound its models; those of the other stores are ignored."""

    store: Literal["disk", "minio"] = Field("disk", description="where models are: disk or minio")
    data: Path = Field(Path("data/models"), description="directory of the disk store")
    disk_reserve_bytes: int = Field(
        64 << 20,
        ge=0,
        le=1 << 50,
        description="bytes of its disk that the disk store leaves free, for a Redis on it; 0 or more",
    )
    scratch: Path = Field(
        Path("data/scratch"), description="directory for files of this process only; emptied at start"
    )
    max_model_bytes: int = Field(
        2 << 30, ge=1, le=1 << 50, description="bytes of the largest model that is taken, at least 1"
    )
    minio_url: str = Field(
        "http://localhost:9000", pattern=r"^https?://[^/\s@]+/?$", description="http(s)://HOST:PORT of MinIO"
    )
    minio_bucket: str = Field(
        "federated-combiner",
        pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$",
        description="3 to 63 lower-case letters, digits, '.' and '-'; `combiner storage setup` makes it",
    )
    minio_region: str = Field("us-east-1", min_length=1, description="the bucket's region")
    minio_access_key: str = Field("", description="the name of this service's user at MinIO")
    minio_secret_key: SecretStr = Field(SecretStr(""), description="that user's secret")
    minio_ca_file: Path | None = Field(
        None, description="PEM file of the authorities to trust; unset: the system's"
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.store == "minio" and not (self.minio_access_key and self.minio_secret_key.get_secret_value()):
            raise ValueError("STORE=minio needs MINIO_ACCESS_KEY and MINIO_SECRET_KEY")
        return self
