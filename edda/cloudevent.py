"""A CloudEvent as Edda carries it: attributes as they came, data as bytes, nothing invented.

The strict edge (``gateways/cloudevents.py``) makes it from a transport's message; accept stores it; the outbox and
the relays send it on. What came in leaves again equal.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json, to_json

from edda.attributes import (
    ExtensionValue,
    fault_of_data,
    fault_of_extensions,
    fault_of_optional,
    fault_of_required,
    is_json_type,
    shown,
)
from edda.errors import PayloadError
from edda.storage.rows import EventRow

#: Numbers that a double cannot hold become infinite when they are read, and infinity is no JSON.
MAY_OVERFLOW = re.compile(rb"[eE]\+?0*[1-9]\d\d|\d{309}")


class InvalidEventError(PayloadError):
    """These attributes (or this data) make no CloudEvent; ``reason`` says why. Nothing was stored."""

    code = "EDDA221"

    def __init__(self, id: object, source: object, reason: str) -> None:
        self.reason = reason
        super().__init__(f"event {shown(id)} from {shown(source)}: {reason}. Nothing was stored or sent.")


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """One event. ``time`` is the raw RFC 3339 string; ``data`` is the payload's bytes or None for no data.

    ``data`` of an event whose ``datacontenttype`` is JSON (or absent) is UTF-8 JSON text. An event that exists is
    valid: making one raises InvalidEventError for what CloudEvents does not allow, and for a type too long to index.
    """

    id: str
    source: str
    type: str
    data: bytes | None = None
    datacontenttype: str | None = None
    dataschema: str | None = None
    subject: str | None = None
    time: str | None = None
    specversion: str = "1.0"
    extensions: Mapping[str, ExtensionValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what is no CloudEvent."""
        fault = (
            fault_of_required(self.id, self.source, self.type, self.specversion)
            or fault_of_optional(self.time, self.subject, self.dataschema, self.datacontenttype)
            or fault_of_extensions(self.extensions, self.specversion)
            or fault_of_data(self.data)
        )
        if fault is not None:
            raise InvalidEventError(self.id, self.source, fault)

    def attributes_json(self) -> bytes:
        """Every attribute but type, source, id and datacontenttype, as one JSON object; absent ones are absent."""
        attributes: dict[str, Any] = {"specversion": self.specversion}
        for name in ("time", "subject", "dataschema"):
            value = getattr(self, name)
            if value is not None:
                attributes[name] = value
        if self.extensions:
            attributes["extensions"] = dict(sorted(self.extensions.items()))
        return to_json(attributes)

    @classmethod
    def from_parts(
        cls,
        type: str,
        source: str,
        event_id: str,
        attributes: bytes,
        data: bytes | None,
        content_type: str | None,
        defaults: Mapping[str, ExtensionValue] | None = None,
    ) -> CloudEvent:
        """The event that a row of the inbox or outbox holds; ``defaults`` are extensions for one that lacks them."""
        parsed = from_json(attributes)
        return cls(
            id=event_id,
            source=source,
            type=type,
            data=data,
            datacontenttype=content_type,
            dataschema=parsed.get("dataschema"),
            subject=parsed.get("subject"),
            time=parsed.get("time"),
            specversion=parsed.get("specversion", "1.0"),
            extensions={**(defaults or {}), **parsed.get("extensions", {})},
        )

    @property
    def is_json(self) -> bool:
        """Whether ``data`` is JSON text, by its content type (RFC 9110 media type; absent means JSON)."""
        return is_json_type(self.datacontenttype)

    def json(self) -> Any:
        """``data`` parsed as JSON. Raises ValueError when it is not JSON, or has a number that no double holds."""
        if self.data is None:
            return None
        value = from_json(self.data, allow_inf_nan=False)
        if MAY_OVERFLOW.search(self.data):
            json.dumps(value, allow_nan=False)  # raises where one has become infinite
        return value

    def digest(self) -> bytes:
        """Its identity: sha256 over the length of source, source and id."""
        source = self.source.encode()
        return hashlib.sha256(b"%d\0" % len(source) + source + self.id.encode()).digest()

    def data_hash(self) -> bytes:
        """What tells a conflict from a duplicate: type, subject, content type and data.

        ``time`` and extensions are left out: tracing headers and clocks may differ from one delivery to the next.
        """
        parts = (self.type.encode(), (self.subject or "").encode(), (self.datacontenttype or "").encode())
        hasher = hashlib.sha256()
        for part in (*parts, self.data or b""):
            hasher.update(b"%d\0" % len(part))
            hasher.update(part)
        return hasher.digest()


def event_of(row: EventRow) -> CloudEvent:
    """The event of a row of the inbox."""
    return CloudEvent.from_parts(
        row.type, row.source, row.event_id, row.attributes, row.data, row.content_type
    )
