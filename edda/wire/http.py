"""CloudEvents over HTTP, sending side: binary, structured, batch. What came in leaves again equal.

Source: CloudEvents HTTP protocol binding 1.0.2 (header values: percent-encoding of everything outside U+0021..U+007E,
of '"' and of '%'), JSON event format 1.0.2 and 0.3.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json

from edda.attributes import ExtensionValue
from edda.cloudevent import CloudEvent
from edda.wire.json_text import is_strict

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
    return {"content-type": STRUCTURED}, json_form(event)


def to_batch(events: Sequence[CloudEvent]) -> tuple[Headers, bytes]:
    """Several events as one JSON array. Only for receivers that asked for it."""
    return {"content-type": BATCH}, b"[" + b",".join(map(json_form, events)) + b"]"


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


def json_form(event: CloudEvent) -> bytes:
    """The event in the JSON event format. JSON data stands in it as it was written; all else goes as base64."""
    form: dict[str, Any] = dict(attributes_of(event))
    if event.datacontenttype is not None:
        form["datacontenttype"] = event.datacontenttype
    if event.data is None:
        return to_json(form)
    if event.is_json and is_strict(event.data):
        return to_json(form)[:-1] + b',"data":' + event.data + b"}"
    encoded = base64.b64encode(event.data).decode()
    if event.specversion == "0.3":
        return to_json({**form, "datacontentencoding": "base64", "data": encoded})
    return to_json({**form, "data_base64": encoded})


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
