"""Gateways and relays as the settings describe them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, ValidationError, validate_call

from edda.cli.settings import GatewaySection, RelaySection, Table, told
from edda.errors import ConfigurationError, EddaError

if TYPE_CHECKING:
    from gateways.gateway import Gateway
    from outbox_relays.publisher import Publisher

#: Arguments that are given by module and name.
_FUNCTIONS = ("mapping",)


def gateways_of(section: GatewaySection) -> list[Gateway]:
    """Every ``[[gateway.kafka]]`` and ``[[gateway.rabbitmq]]``."""
    found: list[Gateway] = []
    if section.kafka:
        from gateways.kafka import KafkaGateway

        found += [_built(KafkaGateway, table, "gateway.kafka") for table in section.kafka]
    if section.rabbitmq:
        from gateways.rabbitmq import RabbitMQGateway

        found += [_built(RabbitMQGateway, table, "gateway.rabbitmq") for table in section.rabbitmq]
    return found


def publishers_of(section: RelaySection) -> list[Publisher]:
    """Every ``[[relay.http]]``, ``[[relay.kafka]]`` and ``[[relay.rabbitmq]]``."""
    found: list[Publisher] = []
    if section.http:
        from outbox_relays.http import HttpPublisher

        found += [_built(HttpPublisher, table, "relay.http") for table in section.http]
    if section.kafka:
        from outbox_relays.kafka import KafkaPublisher

        found += [_built(KafkaPublisher, table, "relay.kafka") for table in section.kafka]
    if section.rabbitmq:
        from outbox_relays.rabbitmq import RabbitMQPublisher

        found += [_built(RabbitMQPublisher, table, "relay.rabbitmq") for table in section.rabbitmq]
    return found


def _built(kind: Any, table: Table, where: str) -> Any:
    """The part, its arguments checked against its signature."""
    config = ConfigDict(arbitrary_types_allowed=True, hide_input_in_errors=True)
    given = {
        name: found(value, f"{where}.{name}") if name in _FUNCTIONS else value
        for name, value in table.items()
    }
    try:
        part = object.__new__(kind)
        validate_call(config=config)(kind.__init__)(part, **given)
    except ValidationError as error:
        raise ConfigurationError(f"[[{where}]]: {told(error)}") from None
    return part


def found(path: object, where: str) -> Any:
    """The object that ``module:name`` says; modules of the working directory are found, too."""
    module, colon, name = str(path).partition(":")
    if not colon or not module or not name:
        raise ConfigurationError(f"{where}={path!r} must be 'module:name', for example 'shop.main:app'")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        value: Any = importlib.import_module(module)
        for part in name.split("."):
            value = getattr(value, part)
    except EddaError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise ConfigurationError(
                f"{where}={path!r}: there is no module {error.name!r} on the path or here"
            ) from None
        raise
    except AttributeError:
        raise ConfigurationError(f"{where}={path!r}: {module!r} has nothing called {name!r}") from None
    return value
