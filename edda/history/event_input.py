"""An event as the input of the instance that it starts: ``{"$event": {...}}``, the event whole.

The inbox writes it for triggers, the engine for the successor of a keyed run; workflows and handlers read it.
"""

from __future__ import annotations

import base64
from typing import Any

from pydantic_core import from_json, to_json

from edda.cloudevent import CloudEvent

#: The one name in the input of a triggered instance.
EVENT_INPUT = "$event"


def encode_input(event: CloudEvent) -> bytes:
    """The event as an instance's input; JSON data stays readable, so that queries can look inside."""
    described: dict[str, Any] = {
        "type": event.type,
        "source": event.source,
        "id": event.id,
        "attributes": from_json(event.attributes_json()),
        "datacontenttype": event.datacontenttype,
    }
    if event.data is not None:
        try:
            if not event.is_json:
                raise ValueError  # noqa: TRY301, as for what says JSON and is not
            described["data"] = event.json()
        except ValueError:
            described["data_base64"] = base64.b64encode(event.data).decode()
    return to_json({EVENT_INPUT: described})


def event_of_input(parsed: dict[str, Any]) -> CloudEvent:
    """The event that a parsed input holds."""
    described = parsed[EVENT_INPUT]
    data: bytes | None = None
    if "data" in described:
        data = to_json(described["data"])
    elif "data_base64" in described:
        data = base64.b64decode(described["data_base64"])
    return CloudEvent.from_parts(
        described["type"],
        described["source"],
        described["id"],
        to_json(described["attributes"]),
        data,
        described["datacontenttype"],
    )


def data_of_input(parsed: dict[str, Any]) -> Any:
    """The event's data alone: the JSON value, bytes where it is not JSON, None where there is none."""
    described = parsed[EVENT_INPUT]
    if "data_base64" in described:
        return base64.b64decode(described["data_base64"])
    return described.get("data")
