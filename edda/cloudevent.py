"""A CloudEvent as Edda carries it: attributes as they came, data as bytes, nothing invented.

The strict edge (``gateways/cloudevents.py``) makes it from a transport's message; accept stores it; the outbox and
the relays send it on. What came in leaves again equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json, to_json

from edda.errors import PayloadError
from edda.storage.rows import EventRow

#: Types that an extension attribute can have (CloudEvents 1.0, type system).
ExtensionValue = str | int | bool

#: Longest type, in bytes of UTF-8: types are indexed.
MAX_TYPE_BYTES = 255


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """One event. ``time`` is the raw RFC 3339 string; ``data`` is the payload's bytes or None for no data.

    ``data`` of an event whose ``datacontenttype`` is JSON (or absent) is UTF-8 JSON text.
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
        """Refuse what no database could index."""
        if len(self.type.encode()) > MAX_TYPE_BYTES:
            msg = (
                f"event {self.id!r} from {self.source!r}: its type has {len(self.type.encode())} bytes, at most "
                f"{MAX_TYPE_BYTES} can be indexed. Nothing was stored; send it with a shorter type."
            )
            raise PayloadError(msg)

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
    ) -> CloudEvent:
        """The event that a row of the inbox or the outbox holds."""
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
            extensions=parsed.get("extensions", {}),
        )

    @property
    def is_json(self) -> bool:
        """Whether ``data`` is JSON text, by its content type (RFC 9110 media type; absent means JSON)."""
        return is_json_type(self.datacontenttype)

    def json(self) -> Any:
        """``data`` parsed as JSON. Raises ValueError when it is not JSON."""
        return None if self.data is None else from_json(self.data, allow_inf_nan=False)

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


def is_json_type(content_type: str | None) -> bool:
    """``application/json``, ``text/json`` or any ``+json`` type, whatever its case and parameters."""
    if content_type is None:
        return True
    media = content_type.split(";", 1)[0].strip().lower()
    return media in {"application/json", "text/json"} or media.endswith("+json")


def event_of(row: EventRow) -> CloudEvent:
    """The event of a row of the inbox."""
    return CloudEvent.from_parts(
        row.type, row.source, row.event_id, row.attributes, row.data, row.content_type
    )
