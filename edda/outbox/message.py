"""From user data to an outbox message."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json
from uuid_utils import uuid7

from edda.attributes import ExtensionValue, fault_of_text, is_json_type, shown
from edda.cloudevent import CloudEvent, InvalidEventError
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
    key: object = None,
    subject: str | None = None,
    time: str | None = None,
    extensions: Mapping[str, ExtensionValue] | None = None,
    content_type: str | None = None,
    destination: str = "default",
    instance_id: str | None = None,
) -> OutboxMessage:
    """An event to publish.

    ``data``: JSON values, Pydantic models, dataclasses; bytes go as they are, and so does text of a ``content_type``
    that is not JSON; None: no data. ``id`` defaults to a new UUIDv7, ``time`` to now (the producer's clock). ``key``:
    events of one key leave in order.

    Raises PayloadError naming what cannot be stored, InvalidEventError for what no receiver would take.
    """
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
    event: CloudEvent, *, key: object, destination: str = "default", instance_id: str | None = None
) -> OutboxMessage:
    """An event that is one already. Raises PayloadError for a key that no database could index."""
    if key is not None:
        key = str(key)
        if fault := fault_of_text("its ordering key", key):
            raise InvalidEventError(event.id, event.source, fault)
        if len(key.encode()) > _LONGEST_KEY:
            reason = f"its ordering key {shown(key)} has {len(key.encode())} bytes, at most {_LONGEST_KEY} are taken"
            raise InvalidEventError(event.id, event.source, reason)
    return OutboxMessage(
        type=event.type,
        source=event.source,
        event_id=event.id,
        attributes=event.attributes_json(),
        data=event.data,
        content_type=event.datacontenttype,
        destination=destination,
        ordering_key=key,
        instance_id=instance_id,
    )


def data_bytes(
    data: Any, content_type: str | None, *, what: str = "data of the event"
) -> tuple[bytes | None, str | None]:
    """``(bytes, content type)`` of an event's data.

    Bytes go as they are, texts of a content type that is not JSON in UTF-8, everything else as JSON.
    """
    if data is None:
        return None, content_type
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data), content_type or OCTET_STREAM
    if is_json_type(content_type):
        return _json(data, what), content_type or "application/json"
    if not isinstance(data, str):
        msg = (
            f"{what}: of the content type {content_type!r} only bytes and str can be sent as they are, not "
            f"{type(data).__name__}. Nothing was written. Give it as bytes, or leave the content type to be JSON's."
        )
        raise PayloadError(msg)
    try:
        return data.encode(), content_type
    except UnicodeEncodeError as error:
        msg = f"{what}: {error}. Nothing was written."
        raise PayloadError(msg) from None


def _json(data: Any, what: str) -> bytes:
    body = encode_json(data, what)
    if b"NaN" in body or b"Infinity" in body:
        try:
            from_json(body, allow_inf_nan=False)
        except ValueError:
            msg = f"{what}: it holds NaN or an infinity, which JSON has not. Nothing was written. Use None or a text."
            raise PayloadError(msg) from None
    return body
