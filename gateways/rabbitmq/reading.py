"""An AMQP 0-9-1 message, read strictly. Pure functions.

Three prefixes of attribute headers are read: ``ce-`` (RabbitMQ's own convention), and ``cloudEvents:`` and
``cloudEvents_``, which a client of AMQP 1.0 sends through the same broker. Header values are typed there; an attribute
is read in its canonical text, as the AMQP binding of CloudEvents 1.0.2 says, without percent-decoding.
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from edda.attributes import shown
from edda.cloudevent import CloudEvent
from gateways.cloudevents import MalformedEventError, UnsupportedFormatError, from_attributes, from_structured
from gateways.delivery import Delivery
from gateways.rabbitmq.wire import UNDECODABLE, UNDECODABLE_KEY

if TYPE_CHECKING:
    from aiormq.abc import DeliveredMessage
    from pamqp.commands import Basic

_PREFIXES = ("ce-", "cloudevents:", "cloudevents_")

#: Of the content_encoding property: what says nothing about the bytes. A compressed body is no event's data.
_PLAIN = frozenset({"", "identity", "utf-8", "utf8", "us-ascii", "ascii", "binary", "8bit"})

#: Properties that a mapping may need, each as a header of the delivery with this name.
_PROPERTIES = (
    "content_encoding",
    "correlation_id",
    "message_type",
    "timestamp",
    "app_id",
    "reply_to",
    "user_id",
    "expiration",
    "priority",
)

_MOST_ATTEMPTS = 2**31 - 1


def delivery_of(queue: str, message: DeliveredMessage) -> Delivery:
    """What the broker gave. Never raises.

    ``stable_id`` is the message_id that the sender set, else None: two messages may well have equal bodies and keys, so
    that nothing else tells a message delivered again from another one. Properties stand in front of the headers, as
    ``amqp-correlation-id`` and so on.
    """
    properties = message.header.properties
    headers: Mapping[str, Any] = properties.headers or {}
    key = headers.get(UNDECODABLE_KEY)
    return Delivery(
        origin=f"rabbitmq:{queue}",
        topic=queue,
        body=message.body,
        headers=(
            *_of_properties(message.exchange, properties),
            *((name, _raw(headers[name])) for name in headers),
        ),
        content_type=properties.content_type or None,
        key=bytes(key) if isinstance(key, bytearray) else (message.routing_key or "").encode(),
        stable_id=properties.message_id or None,
        attempts=_attempts(headers, is_redelivered=bool(message.redelivered)),
    )


def reader(message: DeliveredMessage) -> Callable[[Delivery], CloudEvent | None]:
    """The strict edge for this message, as ``gateways.delivery.bind`` wants it."""

    def read(delivery: Delivery) -> CloudEvent | None:
        properties = message.header.properties
        headers: Mapping[str, Any] = properties.headers or {}
        if UNDECODABLE in headers:
            msg = "its properties or its routing key cannot be decoded; their bytes are among the headers"
            raise MalformedEventError(msg)
        media = (delivery.content_type or "").split(";", 1)[0].strip(" \t").lower()
        is_structured = media.startswith("application/cloudevents")
        attributes = {} if is_structured else _attributes(headers)
        if not (is_structured or attributes):
            return None
        encoding = properties.content_encoding
        if encoding and encoding.strip().lower() not in _PLAIN:
            raise MalformedEventError(f"the body must not be compressed (content_encoding {shown(encoding)})")
        if not is_structured:
            return from_attributes(attributes, delivery.content_type, message.body)
        if media.startswith("application/cloudevents-batch"):
            raise UnsupportedFormatError("there are no batches of events in AMQP: send one message for each")
        return from_structured(message.body, media)

    return read


def _attributes(headers: Mapping[str, Any]) -> dict[str, str]:
    """Name -> canonical text. A header without a value is an absent attribute."""
    attributes: dict[str, str] = {}
    for header, value in headers.items():
        name = _attribute(header)
        if name is None or value is None:
            continue
        if name == "datacontenttype":
            raise MalformedEventError(f"the header {shown(header)} must not be there: content_type says it")
        text = _canonical(header, value)
        if attributes.setdefault(name, text) != text:
            raise MalformedEventError(f"the attribute {shown(name)} is there twice, with different values")
    return attributes


def _attribute(header: str) -> str | None:
    lower = header.lower()
    for prefix in _PREFIXES:
        if lower.startswith(prefix):
            return lower[len(prefix) :]
    return None


def _canonical(header: str, value: Any) -> str:
    """Source: CloudEvents 1.0.2, type system: the canonical string of each type."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, dt.datetime):
        return _moment(value)
    if isinstance(value, bytearray):  # declared as binary
        return base64.b64encode(value).decode()
    if isinstance(value, bytes):  # declared as text
        raise MalformedEventError(f"the header {shown(header)} is not UTF-8")
    raise MalformedEventError(
        f"the header {shown(header)} is a {type(value).__name__}; no attribute has that type"
    )


def _moment(value: dt.datetime) -> str:
    return value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")


def _json(value: Any) -> str:
    return to_json(value, bytes_mode="base64", inf_nan_mode="strings", fallback=str).decode()


def _raw(value: Any) -> bytes:
    """A header's value for people and mappings: texts and bytes as they are, times as RFC 3339, all else as JSON."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, dt.datetime):
        return _moment(value).encode()
    if isinstance(value, decimal.Decimal):
        return str(value).encode()
    try:
        return _json(value).encode()
    except ValueError:  # tables in tables, hundreds deep
        return shown(value).encode()


def _of_properties(exchange: str | None, properties: Basic.Properties) -> Iterator[tuple[str, bytes]]:
    if exchange:
        yield "amqp-exchange", exchange.encode()
    if properties.message_id:
        yield "amqp-message-id", properties.message_id.encode()
    for name in _PROPERTIES:
        value = getattr(properties, name)
        if value is not None and value != "":
            yield f"amqp-{name.replace('_', '-')}", _raw(value)


def _attempts(headers: Mapping[str, Any], *, is_redelivered: bool) -> int:
    """Quorum queues count: failed deliveries, and since RabbitMQ 4.3 every one. Classic ones only tell the first."""
    before = [int(is_redelivered)]
    for name in ("x-acquired-count", "x-delivery-count"):
        count = headers.get(name)
        if isinstance(count, int) and not isinstance(count, bool):
            before.append(count)
    return min(max(before) + 1, _MOST_ATTEMPTS)
