"""CloudEvents over AMQP 0-9-1, sending side: binary and structured. What came in leaves again equal.

Source: the RabbitMQ protocol binding of Knative's eventing-rabbitmq (attributes as ``ce-`` headers, all of them text,
not percent-encoded; datacontenttype as the property content_type), JSON event format 1.0.2 and 0.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from edda.cloudevent import CloudEvent
from edda.wire.http import STRUCTURED, attributes_of, json_form


@dataclass(frozen=True, slots=True)
class AmqpMessage:
    """Headers, the property content_type, the body."""

    headers: dict[str, str]
    content_type: str | None
    body: bytes


def to_binary(event: CloudEvent) -> AmqpMessage:
    """Attributes as ``ce-`` headers, data as the body."""
    headers: dict[str, str] = {}
    for name, value in attributes_of(event).items():
        if isinstance(value, bool):
            headers[f"ce-{name}"] = "true" if value else "false"
        else:
            headers[f"ce-{name}"] = str(value)
    content_type = event.datacontenttype
    if content_type is None and event.data is not None:
        content_type = "application/json"  # implied by the JSON format, and made explicit here
    return AmqpMessage(headers, content_type, event.data or b"")


def to_structured(event: CloudEvent) -> AmqpMessage:
    """The whole event as JSON."""
    return AmqpMessage({}, STRUCTURED, json_form(event))
