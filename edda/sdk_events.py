"""Events of the ``cloudevents`` SDK, as ``handle_cloudevent`` takes them, made ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edda.cloudevent import CloudEvent, InvalidEventError
from edda.outbox.message import data_bytes

_ATTRIBUTES = frozenset(
    {"id", "source", "type", "specversion", "datacontenttype", "dataschema", "subject", "time"}
)


def cloudevent_of(event: Any) -> CloudEvent:
    """Our event from one of the SDK (1.x or 2.x), or from a mapping of attributes and ``data``.

    Raises TypeError for something else, InvalidEventError for what is no CloudEvent.
    """
    if isinstance(event, CloudEvent):
        return event
    if hasattr(event, "get_attributes"):
        attributes: Mapping[str, Any] = event.get_attributes()
        data = event.get_data()
    elif isinstance(event, Mapping):
        attributes = {name: value for name, value in event.items() if name != "data"}
        data = event.get("data")
    else:
        msg = f"a CloudEvent is needed, not {type(event).__name__}"
        raise TypeError(msg)
    missing = [name for name in ("id", "source", "type") if attributes.get(name) is None]
    if missing:
        reason = f"the required attribute {missing[0]!r} is missing"
        raise InvalidEventError(attributes.get("id"), attributes.get("source"), reason)
    content_type = attributes.get("datacontenttype")
    if isinstance(data, bytes):
        body: bytes | None = data  # as it came; a content type that is absent stays absent
    else:
        body, content_type = data_bytes(data, content_type)
    time = attributes.get("time")
    return CloudEvent(
        id=attributes["id"],
        source=attributes["source"],
        type=attributes["type"],
        data=body,
        datacontenttype=content_type,
        dataschema=attributes.get("dataschema"),
        subject=attributes.get("subject"),
        time=time if time is None or isinstance(time, str) else time.isoformat(),
        specversion=attributes.get("specversion") or "1.0",
        extensions={
            name: value for name, value in attributes.items() if name not in _ATTRIBUTES and value is not None
        },
    )
