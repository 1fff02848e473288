"""What an event starts. Triggers are rows, so that a gateway without user code starts the workflows of any app."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from pydantic_core import from_json, to_json
from uuid_utils import uuid7

from edda.cloudevent import CloudEvent
from edda.inbox.shapes import canonical_text, value_at
from edda.storage.rows import NewInstance, Trigger

#: The input of a triggered instance is ``{"$event": {...}}``: the event, whole.
EVENT_INPUT = "$event"


def starts_of(event: CloudEvent, data: Any, triggers: list[Trigger]) -> tuple[NewInstance, ...]:
    """One new instance per trigger that the event fits; ``data`` is its parsed JSON data."""
    if not triggers:
        return ()
    payload = encode_input(event)
    return tuple(
        NewInstance(
            id=str(uuid7()),
            app=trigger.app,
            workflow=trigger.workflow,
            input=payload,
            version=trigger.version,
            live_key=_live_key(trigger, event, data),
        )
        for trigger in triggers
    )


def _live_key(trigger: Trigger, event: CloudEvent, data: Any) -> bytes | None:
    """At most one live run per value of the key; None: one run per event."""
    if trigger.policy != "key" or trigger.key_path is None:
        return None
    value = canonical_text(value_at(event, data, trigger.key_path), trigger.key_path)
    return hashlib.sha256("\0".join((trigger.app, trigger.workflow, value)).encode()).digest()


def encode_input(event: CloudEvent) -> bytes:
    """The event as an instance's input; JSON data stays readable."""
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
    """The event that an instance's input holds."""
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
