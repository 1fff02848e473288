"""The routing key of an event: a text with the event's attributes in it, or a function's answer. Pure."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Final

from edda.cloudevent import CloudEvent
from edda.errors import ConfigurationError

RoutingKey = str | Callable[[CloudEvent], str]

#: Bytes of a routing key, of a content type and of a message id: the protocol counts them in one byte.
LONGEST: Final = 255

_FIELDS: Final = ("type", "subject", "key")


def routing_of(
    who: str, routing_key: RoutingKey | None, exchange: str
) -> Callable[[CloudEvent, str | None], str]:
    """The routing key of (event, ordering key). Raises ConfigurationError, naming a value that works."""
    if routing_key is None:
        if not exchange:
            msg = f"{who}: without an exchange, routing_key must name the queue, for example routing_key='orders'"
            raise ConfigurationError(msg)
        routing_key = "{type}"
    if not isinstance(routing_key, str):
        function = routing_key
        return lambda event, _: function(event)
    template = routing_key
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError:
        fields = [""]
    if not set(fields) <= set(_FIELDS) or (not template and not exchange):
        msg = (
            f"{who}: routing_key={template!r} must be a text that may hold {{type}}, {{subject}} and {{key}}, for "
            "example 'orders.{key}', or a function of the event"
        )
        raise ConfigurationError(msg)
    if not fields:
        constant = template.format()
        return lambda _, __: constant
    return lambda event, key: template.format(type=event.type, subject=event.subject or "", key=key or "")
