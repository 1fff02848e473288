"""An event as a record.

Source: CloudEvents Kafka protocol binding 1.0.2: attributes are headers ``ce_<name>`` in UTF-8, datacontenttype is the
header ``content-type``, data is the value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edda.attributes import ExtensionValue
from edda.cloudevent import CloudEvent
from edda.wire.http import STRUCTURED, attributes_of, json_form

Mode = Literal["binary", "structured"]


@dataclass(frozen=True, slots=True)
class Record:
    """What is appended to a partition."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


def record_of(event: CloudEvent, key: bytes | None, mode: Mode, *, tombstones: bool) -> Record:
    """The record.

    An event without data has no value, but in a compacted topic a key without a value deletes what the key had: so a
    keyed one has an empty value, unless ``tombstones`` asks for the other. (Without a key it deletes nothing.)
    """
    if mode == "structured":
        return Record(key, json_form(event), [("content-type", STRUCTURED.encode())])
    headers = [(f"ce_{name}", _text(value).encode()) for name, value in attributes_of(event).items()]
    if event.datacontenttype is not None:
        headers.append(("content-type", event.datacontenttype.encode()))
    elif event.data is not None:
        headers.append(
            ("content-type", b"application/json")
        )  # implied by the JSON format, and made explicit here
    if event.data is None:
        return Record(key, None if tombstones or key is None else b"", headers)
    return Record(key, event.data, headers)


def _text(value: ExtensionValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
