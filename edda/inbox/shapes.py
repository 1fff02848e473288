"""What an event is hashed for: a type pattern, and the values at some paths. Pure functions.

A wait and the events that fit it have the same hash; it is SHA-256 over canonical JSON, so that equal hashes are equal
values.

Values are compared as JSON: 42 is not "42"; 42 and 42.0 are one number; true is not 1; absent is not null. UUIDs and
Decimals are their text, dates and times their ISO 8601 text, enums their value. What has no JSON form is refused.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import hashlib
import json
import math
import re
import uuid
from collections.abc import Mapping
from typing import Any, Final

from edda.attributes import shown
from edda.cloudevent import CloudEvent
from edda.errors import ConfigurationError, PayloadError
from edda.storage.rows import Shape

_PATH = re.compile(r"(data(\.[^.\s]+)*|extensions\.[a-z0-9]+|source|subject|type|id)\Z")
_ATTRIBUTES: Final = frozenset({"source", "subject", "type", "id"})
_LONGEST_INT_BITS: Final = 14_000  # a little below 4,300 digits, more than which Python does not write
_ABSENT: Final = object()


def validate_pattern(pattern: str) -> None:
    """Raises ConfigurationError unless it is an exact type, a prefix with a trailing ``.*``, or ``*``."""
    stem = pattern.removesuffix(".*")
    if not pattern or len(pattern.encode()) > 255 or (pattern != "*" and ("*" in stem or not stem)):
        msg = (
            f"event type {pattern!r}: use an exact type ('payment.completed'), a prefix with a trailing '.*' "
            "('payment.*'), or '*'; at most 255 bytes"
        )
        raise ConfigurationError(msg)


def validate_path(path: str) -> None:
    """Raises ConfigurationError unless events can be matched by it."""
    if not _PATH.match(path):
        msg = (
            f"path {path!r}: use 'data.<name>[.<name>...]', 'extensions.<name>', 'source', 'subject', 'type' or 'id', "
            "for example 'data.order_id'"
        )
        raise ConfigurationError(msg)


def patterns_of(event_type: str) -> list[str]:
    """All patterns that fit a type: ``a.b`` fits ``a.b``, ``a.*``, ``*``."""
    parts = event_type.split(".")
    return [event_type, *(".".join(parts[:n]) + ".*" for n in range(len(parts) - 1, 0, -1)), "*"]


def shape_hash(pattern: str, values: Mapping[str, Any]) -> bytes:
    """The hash of a wait for ``pattern`` with these values. Raises PayloadError for a value without a JSON form."""
    return _hash(pattern, [(path, _canonical(value, path)) for path, value in sorted(values.items())])


def event_hash(shape: Shape, event: CloudEvent, data: Any) -> bytes | None:
    """The hash under which an event is found by waits of this shape; None where it lacks one of the paths.

    ``data`` is ``parsed_data(event)``.
    """
    found = []
    for path in shape.paths:
        value = _lookup(event, data, path)
        if value is _ABSENT:
            return None
        found.append((path, _canonical(value, path)))
    return _hash(shape.pattern, found)


def parsed_data(event: CloudEvent) -> Any:
    """The event's JSON data, or a marker that no path matches where it is not JSON."""
    if event.data is None or not event.is_json:
        return _ABSENT
    try:
        return event.json()
    except ValueError:
        return _ABSENT


def value_at(event: CloudEvent, data: Any, path: str) -> Any:
    """The value at a path, or None where it is absent (and for a null)."""
    value = _lookup(event, data, path)
    return None if value is _ABSENT else value


def canonical_text(value: Any, what: str) -> str:
    """The canonical JSON text of a value."""
    return json.dumps(_canonical(value, what), sort_keys=True, separators=(",", ":"))


def _hash(pattern: str, values: list[tuple[str, Any]]) -> bytes:
    text = json.dumps([pattern, values], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


def _lookup(event: CloudEvent, data: Any, path: str) -> Any:
    head, _, rest = path.partition(".")
    if head == "data":
        value = data
        for name in rest.split(".") if rest else ():
            value = value.get(name, _ABSENT) if isinstance(value, dict) else _ABSENT
        return value
    if head == "extensions":
        return event.extensions.get(rest, _ABSENT)
    if path not in _ATTRIBUTES:
        return _ABSENT  # a row that another version wrote
    value = getattr(event, path)
    return _ABSENT if value is None else value


def _canonical(value: Any, what: str) -> Any:
    if isinstance(value, enum.Enum):
        return _canonical(value.value, what)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        if value.bit_length() > _LONGEST_INT_BITS:
            raise _refused(value, what)
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _refused(value, what)
        return int(value) if value.is_integer() else value
    if isinstance(value, uuid.UUID | decimal.Decimal):
        return str(value)
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise _refused(value, what)
        return {name: _canonical(member, what) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(member, what) for member in value]
    raise _refused(value, what)


def _refused(value: Any, what: str) -> PayloadError:
    return PayloadError(
        f"the value of {what!r} is {shown(value)}, which cannot be compared as JSON. Nothing was registered. Use str, "
        "int, float, bool, None, a list, a dict with strings as keys, an enum, UUID, Decimal, date or datetime."
    )
