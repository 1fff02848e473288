"""How Kafka is reached: the settings that gateway and publisher share, checked before anything is started."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any, Literal

from typing_extensions import TypedDict  # pydantic reads it, and before Python 3.12 wants this one

from edda.errors import ConfigurationError, MissingExtraError

_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS = ("PLAIN", "GSSAPI", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
_PROBE_SECONDS = 5.0


class ClientOptions(TypedDict, total=False):
    """Security and names, as aiokafka calls them."""

    client_id: str
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
    ssl_context: ssl.SSLContext
    sasl_mechanism: Literal["PLAIN", "GSSAPI", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]
    sasl_plain_username: str
    sasl_plain_password: str
    sasl_kerberos_service_name: str
    sasl_kerberos_domain_name: str
    sasl_oauth_token_provider: Any


def client_settings(
    who: str, bootstrap_servers: str | Sequence[str], options: ClientOptions
) -> dict[str, Any]:
    """What aiokafka's clients are made with. Raises ConfigurationError, which shows no secret."""
    servers = bootstrap_servers.split(",") if isinstance(bootstrap_servers, str) else list(bootstrap_servers)
    servers = [server.strip() for server in servers]
    # An address of another form may hold a password, and would stand in every log.
    if not servers or not all(map(_is_address, servers)):
        msg = f"{who}: bootstrap_servers is host:port, or several, for example 'kafka-1:9092,kafka-2:9092'"
        raise ConfigurationError(msg)
    if unknown := set(options) - ClientOptions.__optional_keys__:
        msg = (
            f"{who}: unknown settings {sorted(unknown)}; there are {sorted(ClientOptions.__optional_keys__)}"
        )
        raise ConfigurationError(msg)
    protocol = options.get("security_protocol", "PLAINTEXT")
    if protocol not in _PROTOCOLS:
        msg = f"{who}: security_protocol={protocol!r} is not one of {', '.join(_PROTOCOLS)}"
        raise ConfigurationError(msg)
    if protocol.endswith("SSL") and not isinstance(options.get("ssl_context"), ssl.SSLContext):
        msg = f"{who}: security_protocol={protocol!r} needs ssl_context, for example ssl.create_default_context()"
        raise ConfigurationError(msg)
    _check_sasl(who, protocol, options)
    return {"security_protocol": protocol, "sasl_mechanism": "PLAIN", **options, "bootstrap_servers": servers}


def _is_address(server: str) -> bool:
    host, _, port = server.rpartition(":")
    return bool(host) and port.isascii() and port.isdecimal() and not set(server) & set("@/ ")


def _check_sasl(who: str, protocol: str, options: ClientOptions) -> None:
    if not protocol.startswith("SASL"):
        given = [name for name in options if name.startswith("sasl_")]
        if given:
            msg = f"{who}: {given[0]} has no effect with security_protocol={protocol!r}; use 'SASL_SSL'"
            raise ConfigurationError(msg)
        return
    mechanism = options.get("sasl_mechanism", "PLAIN")
    if mechanism not in _MECHANISMS:
        msg = f"{who}: sasl_mechanism={mechanism!r} is not one of {', '.join(_MECHANISMS)}"
        raise ConfigurationError(msg)
    needed = {
        "GSSAPI": (),
        "OAUTHBEARER": ("sasl_oauth_token_provider",),
    }.get(mechanism, ("sasl_plain_username", "sasl_plain_password"))
    for name in needed:
        if not options.get(name):
            msg = f"{who}: sasl_mechanism={mechanism!r} needs {name}"
            raise ConfigurationError(msg)


def need_aiokafka(who: str) -> None:
    """Raises MissingExtraError."""
    try:
        import aiokafka  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(who, "kafka") from error


async def why_not(settings: dict[str, Any]) -> str:
    """Why no connection comes about. The client library logs the reasons, and raises one error for all of them."""
    from aiokafka.conn import create_conn
    from aiokafka.errors import KafkaError

    names = [name for name in settings if name.startswith(("sasl_", "ssl_", "security_"))]
    told = []
    for server in settings["bootstrap_servers"]:
        host, _, port = server.rpartition(":")
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                connection = await create_conn(
                    host.strip("[]"), int(port), **{name: settings[name] for name in names}
                )
        except (KafkaError, OSError) as error:  # TimeoutError is an OSError
            told.append(f"{server}: {type(error).__name__}: {error}")
        else:
            connection.close()
    return "; ".join(told) or "it answers, and gives no metadata"
