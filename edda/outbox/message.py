"""From user data to an outbox message."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from uuid_utils import uuid7

from edda.cloudevent import CloudEvent, ExtensionValue
from edda.errors import PayloadError
from edda.history.codec import OCTET_STREAM, encode_json
from edda.storage.rows import OutboxMessage

_LONGEST_KEY = 255


def message(
    type: str,
    source: str,
    data: Any,
    *,
    id: str | None = None,
    key: str | None = None,
    subject: str | None = None,
    time: str | None = None,
    extensions: Mapping[str, ExtensionValue] | None = None,
    content_type: str | None = None,
    destination: str = "default",
    instance_id: str | None = None,
) -> OutboxMessage:
    """An event to publish.

    ``data``: JSON values, Pydantic models, dataclasses; bytes go as they are; None: no data. ``id`` defaults to a new UUIDv7, ``time`` to now
    (the producer's clock). ``key``: events of one key leave in order.

    Raises PayloadError naming what cannot be stored.
    """
    if not type or not source:
        msg = f"an event needs a type and a source, both not empty (type={type!r}, source={source!r})"
        raise PayloadError(msg)
    if key is not None and not 0 < len(str(key).encode()) <= _LONGEST_KEY:
        msg = f"event {type!r}: its ordering key {key!r} must have 1 to {_LONGEST_KEY} bytes"
        raise PayloadError(msg)
    body, datacontenttype = data_bytes(data, content_type, what=f"data of event {type!r}")
    event = CloudEvent(
        id=id or str(uuid7()),
        source=source,
        type=type,
        data=body,
        datacontenttype=datacontenttype,
        subject=subject,
        time=time or datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        extensions=dict(extensions or {}),
    )
    return message_of(event, key=key, destination=destination, instance_id=instance_id)


def message_of(
    event: CloudEvent, *, key: str | None, destination: str = "default", instance_id: str | None = None
) -> OutboxMessage:
    """An event that is one already."""
    return OutboxMessage(
        type=event.type,
        source=event.source,
        event_id=event.id,
        attributes=event.attributes_json(),
        data=event.data,
        content_type=event.datacontenttype,
        destination=destination,
        ordering_key=None if key is None else str(key),
        instance_id=instance_id,
    )


def data_bytes(
    data: Any, content_type: str | None, *, what: str = "data of the event"
) -> tuple[bytes | None, str | None]:
    """``(bytes, content type)`` of an event's data."""
    if data is None:
        return None, content_type
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data), content_type or OCTET_STREAM
    return encode_json(data, what), content_type or "application/json"
