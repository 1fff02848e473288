"""The strict edge: a message becomes a CloudEvent only if it is one.

The mode is chosen by the content type alone. Required attributes are checked on the raw headers or JSON, and nothing is invented: the
``cloudevents`` SDK makes up missing ids and times, takes ``ce-`` headers for the mode, and keeps only the last of duplicate JSON names, so it
is not used for reading.

Sources: CloudEvents 1.0.2 (specification, JSON format, HTTP protocol binding), RFC 9110 (media types), RFC 3339 (times).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from pydantic_core import to_json

from edda.cloudevent import CloudEvent, ExtensionValue, is_json_type
from edda.errors import EddaError

_NAME = re.compile(r"[a-z0-9]+\Z")
_TIME = re.compile(
    r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])[Tt]([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?"
    r"([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)\Z"
)
_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+\s*(;.*)?\Z", re.DOTALL)
_URI_REFERENCE = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_VERSIONS = frozenset({"1.0", "0.3"})
_CORE = frozenset({"id", "source", "type", "specversion", "time", "subject", "dataschema", "datacontenttype"})
_INT32 = range(-(2**31), 2**31)


class MalformedEventError(EddaError, ValueError):
    """The message is not a valid CloudEvent; ``reason`` says why. Nothing was stored."""

    code = "EDDA410"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"not a valid CloudEvent: {reason}")


class UnsupportedFormatError(MalformedEventError):
    """An event format (Avro, Protobuf, ...) that is not read here."""

    code = "EDDA411"


# ---------------------------------------------------------------------------------------------- HTTP


def from_http(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> list[CloudEvent]:
    """The event of a binary or structured request, or the events of a batch, in order.

    Raises MalformedEventError: nothing of the request is to be accepted.
    """
    content_type: str | None = None
    attributes: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name = raw_name.decode("latin-1").lower()
        if name == "content-type":
            content_type = raw_value.decode("latin-1").strip()
        elif name.startswith("ce-"):
            if name[3:] in attributes:
                raise MalformedEventError(f"the header {name!r} is there twice")
            attributes[name[3:]] = decode_header(raw_value, name)
    media = (content_type or "").split(";", 1)[0].strip().lower()
    if media.startswith("application/cloudevents-batch"):
        return from_batch(body, media)
    if media.startswith("application/cloudevents"):
        return [from_structured(body, media)]
    if "datacontenttype" in attributes:
        raise MalformedEventError("the header 'ce-datacontenttype' must not be there: Content-Type says it")
    return [from_attributes(attributes, content_type, body)]


def decode_header(raw: bytes, name: str) -> str:
    """A header's value: an optional quoted string, then one round of percent-decoding. Raw UTF-8 is tolerated."""
    value = raw.strip(b" \t")
    if len(value) >= 2 and value.startswith(b'"') and value.endswith(b'"'):
        value = re.sub(rb"\\(.)", rb"\1", value[1:-1])
    try:
        return unquote_to_bytes(value).decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedEventError(f"the header {name!r} is not UTF-8 after percent-decoding") from None


def from_attributes(attributes: Mapping[str, str], content_type: str | None, body: bytes) -> CloudEvent:
    """An event in binary mode: attributes as canonical text, data as the body (empty and untyped: no data)."""
    return _build(
        {name: value for name, value in attributes.items() if name != "datacontenttype"},
        content_type,
        body if body or content_type is not None else None,
    )


# ---------------------------------------------------------------------------------------------- JSON format


def from_structured(body: bytes, media: str = "application/cloudevents+json") -> CloudEvent:
    """An event in the JSON event format."""
    _need_json(media)
    return from_json_form(_parse(body))


def from_batch(body: bytes, media: str = "application/cloudevents-batch+json") -> list[CloudEvent]:
    """A JSON array of events; may be empty. One bad element refuses all: nothing is half accepted."""
    _need_json(media)
    parsed = _parse(body)
    if not isinstance(parsed, list):
        raise MalformedEventError("a batch is a JSON array")
    events = []
    for at, element in enumerate(parsed):
        try:
            events.append(from_json_form(element))
        except MalformedEventError as error:
            raise MalformedEventError(f"element {at} of the batch: {error.reason}") from error
    if len({event.specversion for event in events}) > 1:
        raise MalformedEventError("all elements of a batch have the same specversion")
    return events


def from_json_form(form: Any) -> CloudEvent:
    """An event from its parsed JSON form. Null attributes are absent ones."""
    if not isinstance(form, dict):
        raise MalformedEventError("an event is a JSON object")
    attributes: dict[str, Any] = {}
    for name, value in form.items():
        if name in {"data", "data_base64"} or value is None:
            continue
        attributes[name] = value
    content_type = attributes.pop("datacontenttype", None)
    if content_type is not None and not isinstance(content_type, str):
        raise MalformedEventError("datacontenttype must be a string")
    return _build(attributes, content_type, _data_of(form, content_type))


def _data_of(form: dict[str, Any], content_type: str | None) -> bytes | None:
    if form.get("data_base64") is not None:
        if form.get("data") is not None:
            raise MalformedEventError("data and data_base64 exclude each other")
        encoded = form["data_base64"]
        if not isinstance(encoded, str):
            raise MalformedEventError("data_base64 must be a string")
        try:
            return base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise MalformedEventError("data_base64 is not base64") from None
    if "data" not in form:
        return None
    data = form["data"]
    if data is None and content_type is None:
        return None
    if is_json_type(content_type):
        return to_json(data)
    if not isinstance(data, str):
        raise MalformedEventError(
            f"data of the content type {content_type!r} must be a string (or data_base64)"
        )
    try:
        return data.encode()
    except UnicodeEncodeError:
        raise MalformedEventError("data holds a lone surrogate") from None


def _need_json(media: str) -> None:
    if not media.endswith("+json"):
        raise UnsupportedFormatError(
            f"the event format {media!r} is not read here; send '+json', or binary mode"
        )


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise MalformedEventError("the JSON is not UTF-8") from None
    except RecursionError:
        raise MalformedEventError("the JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise MalformedEventError(f"the JSON cannot be read: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise MalformedEventError(f"the JSON has the name {twice!r} twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise MalformedEventError(f"the JSON holds {name}, which is no JSON")


# ---------------------------------------------------------------------------------------------- checks


def _build(attributes: Mapping[str, Any], content_type: str | None, data: bytes | None) -> CloudEvent:
    given = dict(attributes)
    version = _required(given, "specversion")
    if version not in _VERSIONS:
        raise MalformedEventError(f"specversion {version!r} is not one of 1.0 and 0.3")
    id, source, type_ = (_required(given, name) for name in ("id", "source", "type"))
    if not _URI_REFERENCE.match(source):
        raise MalformedEventError(f"source {source!r} is not a URI-reference")
    if content_type is not None and not _MEDIA_TYPE.match(content_type):
        raise MalformedEventError(f"datacontenttype {content_type!r} is not a media type")
    schema = _optional(given, "schemaurl" if version == "0.3" else "dataschema")
    if schema is not None and not _URI_REFERENCE.match(schema):
        raise MalformedEventError(f"dataschema {schema!r} is not a URI")
    subject = _optional(given, "subject")
    time = _optional(given, "time")
    if time is not None and not _TIME.match(time):
        raise MalformedEventError(f"time {time!r} is not an RFC 3339 time with seconds and an offset")
    try:
        return CloudEvent(
            id=id,
            source=source,
            type=type_,
            data=data,
            datacontenttype=content_type,
            dataschema=schema,
            subject=subject,
            time=time,
            specversion=version,
            extensions={name: _extension(name, value) for name, value in given.items()},
        )
    except EddaError as error:
        if isinstance(error, MalformedEventError):
            raise
        raise MalformedEventError(str(error)) from error


def _required(given: dict[str, Any], name: str) -> str:
    value = _optional(given, name)
    if value is None:
        raise MalformedEventError(f"the required attribute {name!r} is missing")
    return value


def _optional(given: dict[str, Any], name: str) -> str | None:
    if name not in given:
        return None
    value = given.pop(name)
    if not isinstance(value, str):
        raise MalformedEventError(f"{name} must be a string, not {json.dumps(value)[:80]}")
    if not value:
        raise MalformedEventError(f"{name} must not be empty")
    if _CONTROL.search(value):
        raise MalformedEventError(f"{name} holds a control character or a lone surrogate")
    return value


def _extension(name: str, value: Any) -> ExtensionValue:
    if not _NAME.match(name) or name in _CORE:
        raise MalformedEventError(f"{name!r} is not an attribute's name: use the letters a to z and digits")
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in _INT32:
        return value
    if isinstance(value, str) and not _CONTROL.search(value):
        return value
    raise MalformedEventError(f"the extension {name!r} must be a string, a boolean or a 32-bit integer")
