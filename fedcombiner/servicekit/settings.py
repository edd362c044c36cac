"""Settings of a service: a frozen object that cannot be invalid and whose defaults run.

A field `metrics_port` is the environment variable `METRICS_PORT`. Only a main reads the environment, by
`load_or_exit`; everything else, tests too, constructs the object, which looks at nothing but its arguments.
"""

import re
import sys
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar
from urllib.parse import quote, unquote, urlsplit

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from fedcombiner.servicekit.errors import StartupError, shown

USAGE_EXIT_CODE: Final = 2

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "console"]


class InvalidSettings(StartupError):
    """One line for each bad setting: its name, its value and what is allowed."""


class ServiceSettings(BaseSettings):
    """What every service can be told. Subclasses add fields, and change defaults such as the port."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", validate_default=True)

    host: str = Field("0.0.0.0", min_length=1, description="address to listen on")
    port: Port = Field(12080, description="TCP port, 0 to 65535 (0: any free port)")
    metrics_host: str = Field("0.0.0.0", min_length=1, description="address of metrics and health")
    metrics_port: Port = Field(9464, description="TCP port, 0 to 65535 (0: any free port)")
    log_level: LogLevel = Field("info", description="debug, info, warning or error")
    log_format: LogFormat = Field("json", description="json or console")
    drain_seconds: Seconds = Field(
        10.0, description="seconds that requests under way may take after SIGTERM, more than 0, at most 86400"
    )
    tls_cert_file: Path | None = Field(
        None, description="PEM file of the server's certificate and those that signed it; unset: no TLS"
    )
    tls_key_file: Path | None = Field(
        None, description="PEM file of the private key that fits TLS_CERT_FILE, without a passphrase"
    )

    @model_validator(mode="after")
    def _tls_is_complete(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("TLS_CERT_FILE and TLS_KEY_FILE are needed together")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """The settings in the environment, with `overrides` on top; an empty variable counts as unset.

        Raises InvalidSettings.
        """
        try:
            environment = EnvSettingsSource(cls, env_ignore_empty=True)()
        except SettingsError as error:
            raise InvalidSettings(str(error)) from None
        return cls.checked(**{**environment, **overrides})

    @classmethod
    def checked(cls, **values: Any) -> Self:
        """The settings with these values, whatever the environment says. Raises InvalidSettings."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise InvalidSettings("\n".join(cls._line(detail) for detail in error.errors())) from None

    @classmethod
    def _line(cls, detail: ErrorDetails) -> str:
        name = str(detail["loc"][0]) if detail["loc"] else ""
        field = cls.model_fields.get(name)
        complaint = detail["msg"].removeprefix("Input ").removeprefix("Value error, ")
        allowed = f"; allowed: {field.description}" if field and field.description else ""
        secret = field is not None and "Secret" in str(field.annotation)
        value = "'***'" if secret else without_credentials(shown(detail["input"]))
        return f"{name.upper()}={value}: {complaint}{allowed}" if name else complaint


SettingsT = TypeVar("SettingsT", bound=ServiceSettings)


def load_or_exit(kind: type[SettingsT], **overrides: Any) -> SettingsT:
    """The settings in the environment; with bad ones, a line on stderr for each and exit code 2."""
    try:
        return kind.load(**overrides)
    except InvalidSettings as error:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: {error}\n")
        raise SystemExit(USAGE_EXIT_CODE) from None


def without_credentials(text: str) -> str:
    """`text` with the user and password of any URL in it masked."""
    return re.sub(r"://[^\s@]*@", "://***@", text)


def with_password(url: str, password: str) -> str:
    """`url` with `password` in it, percent-encoded.

    Raises:
        ValueError: it has another one already.
    """
    parts = urlsplit(url)
    if parts.password is not None and password not in (parts.password, unquote(parts.password)):
        raise ValueError("the URL has another password")
    place = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{parts.username or ''}:{quote(password, safe='')}@{place}").geturl()
