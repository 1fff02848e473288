"""CloudEvents 1.0 over HTTP, sending side: binary, structured, batch. What came in leaves again equal.

Source: CloudEvents HTTP protocol binding 1.0.2 (header values: percent-encoding of everything outside U+0021..U+007E, of '"' and of '%').
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json, to_json

from edda.cloudevent import CloudEvent, ExtensionValue

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"

Headers = dict[str, str]


def to_binary(event: CloudEvent) -> tuple[Headers, bytes]:
    """Attributes as ``ce-`` headers, data as the body."""
    headers = {f"ce-{name}": encode_value(value) for name, value in attributes_of(event).items()}
    if event.datacontenttype is not None:
        headers["content-type"] = event.datacontenttype
    elif event.data is not None:
        headers["content-type"] = "application/json"  # implied by the JSON format, and made explicit here
    return headers, event.data or b""


def to_structured(event: CloudEvent) -> tuple[Headers, bytes]:
    """The whole event as JSON."""
    return {"content-type": STRUCTURED}, to_json(json_form(event))


def to_batch(events: Sequence[CloudEvent]) -> tuple[Headers, bytes]:
    """Several events as one JSON array. Only for receivers that asked for it."""
    return {"content-type": BATCH}, to_json([json_form(event) for event in events])


def attributes_of(event: CloudEvent) -> dict[str, ExtensionValue]:
    """Every attribute that is present but datacontenttype, extensions included."""
    attributes: dict[str, ExtensionValue] = {
        "specversion": event.specversion,
        "id": event.id,
        "source": event.source,
        "type": event.type,
    }
    for name, value in (("subject", event.subject), ("time", event.time), ("dataschema", event.dataschema)):
        if value is not None:
            attributes["schemaurl" if name == "dataschema" and event.specversion == "0.3" else name] = value
    attributes.update(event.extensions)
    return attributes


def json_form(event: CloudEvent) -> dict[str, Any]:
    """The event in the JSON event format."""
    form: dict[str, Any] = dict(attributes_of(event))
    if event.datacontenttype is not None:
        form["datacontenttype"] = event.datacontenttype
    if event.data is None:
        return form
    if event.is_json:
        try:
            form["data"] = from_json(event.data, allow_inf_nan=False)
        except ValueError:
            pass
        else:
            return form
    form["data_base64"] = base64.b64encode(event.data).decode()
    return form


def encode_value(value: ExtensionValue) -> str:
    """A header value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if all("!" <= char <= "~" and char not in '"%' for char in text):
        return text
    return "".join(
        char if "!" <= char <= "~" and char not in '"%' else "".join(f"%{byte:02X}" for byte in char.encode())
        for char in text
    )
