"""A received event as the payload of a history record: whole, because the inbox forgets it before the history does."""

from __future__ import annotations

import base64

from pydantic_core import from_json, to_json

from edda.cloudevent import CloudEvent, event_of
from edda.storage.rows import EventRow


def encode_event(row: EventRow) -> tuple[bytes, CloudEvent]:
    """The record's payload, and the event as the workflow gets it."""
    event = event_of(row)
    described = {
        "seq": row.seq,
        "type": row.type,
        "source": row.source,
        "id": row.event_id,
        "attributes": row.attributes.decode(),
        "content_type": row.content_type,
    }
    if row.data is not None:
        try:
            described["text"] = row.data.decode()
        except UnicodeDecodeError:
            described["base64"] = base64.b64encode(row.data).decode()
    return to_json(described), event


def decode_event(payload: bytes) -> tuple[int, CloudEvent]:
    """Accept sequence and event of a record's payload."""
    described = from_json(payload)
    data: bytes | None = None
    if "text" in described:
        data = described["text"].encode()
    elif "base64" in described:
        data = base64.b64decode(described["base64"])
    event = CloudEvent.from_parts(
        described["type"],
        described["source"],
        described["id"],
        described["attributes"].encode(),
        data,
        described["content_type"],
    )
    return described["seq"], event
