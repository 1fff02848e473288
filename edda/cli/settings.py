"""Settings of the commands that run parts: flags before ``EDDA_*`` variables before ``edda.toml``.

::

    db_url = "postgresql://..."            # or EDDA_DB_URL

    [gateway]                              # edda gateway: HTTP, and what stands below
    port = 8000
    tokens = ["s3cret"]

    [[gateway.kafka]]                      # the arguments of KafkaGateway
    bootstrap_servers = "localhost:9092"
    topics = ["payments"]
    group_id = "orders"
    mapping = "shop.events:from_legacy"    # functions by module and name

    [[relay.http]]                         # edda relay: the arguments of HttpPublisher
    url = "https://example.com/events"

    [worker]                               # edda worker
    app = "shop.main:app"

In a variable, ``__`` goes one level down: ``EDDA_GATEWAY__PORT=8080``.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from edda.errors import ConfigurationError

DEFAULT_FILE = Path("edda.toml")

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", envvar="EDDA_CONFIG", help="Settings; default: edda.toml, if it is there."),
]

Port = Annotated[int | None, Field(ge=0, le=65535)]

#: The arguments of a part's class, by name.
Table = dict[str, Any]


class _Section(BaseModel, extra="forbid", hide_input_in_errors=True):
    """A typing error is an error."""


class GatewaySection(_Section):
    """``[gateway]``."""

    host: str = "127.0.0.1"
    port: Port = None
    tokens: list[SecretStr] = []
    kafka: list[Table] = []
    rabbitmq: list[Table] = []


class RelaySection(_Section):
    """``[relay]``; host and port are those of ``/healthz``."""

    host: str = "127.0.0.1"
    port: Port = None
    http: list[Table] = []
    kafka: list[Table] = []
    rabbitmq: list[Table] = []


class WorkerSection(_Section):
    """``[worker]``; with a port it serves the app: events, ``/healthz``, ``/readyz``."""

    app: str | None = None
    host: str = "127.0.0.1"
    port: Port = None


class Settings(BaseSettings):
    """All of ``edda.toml``."""

    model_config = SettingsConfigDict(
        env_prefix="EDDA_", env_nested_delimiter="__", extra="forbid", hide_input_in_errors=True
    )

    db_url: SecretStr | None = None
    gateway: GatewaySection = GatewaySection()
    relay: RelaySection = RelaySection()
    worker: WorkerSection = WorkerSection()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Variables, then the file that ``read`` names; secrets in files of their own come last."""
        del init_settings, dotenv_settings
        return env_settings, TomlConfigSettingsSource(settings_cls), file_secret_settings


def read(file: Path | None) -> Settings:
    """Raises ConfigurationError: no such file, not TOML, or a setting that there is not."""
    if file is not None and not file.is_file():
        raise ConfigurationError(f"--config {file}: there is no such file")

    class _Read(Settings):
        model_config = SettingsConfigDict(toml_file=file or DEFAULT_FILE)

    try:
        return _Read()
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{file or DEFAULT_FILE} is not TOML: {error}") from None
    except ValidationError as error:
        raise ConfigurationError(f"{file or DEFAULT_FILE} and EDDA_*: {told(error)}") from None


def told(error: ValidationError) -> str:
    """What is wrong with which setting; without the values, which may be secret."""
    return "; ".join(
        f"{'.'.join(map(str, each['loc'])) or 'settings'}: {each['msg']}" for each in error.errors()
    )
