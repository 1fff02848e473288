"""The strict edge: a message becomes a CloudEvent only if it is one.

The mode is chosen by the content type alone. Required attributes are checked on the raw headers or JSON, and nothing is
invented: the ``cloudevents`` SDK makes up missing ids and times, takes ``ce-`` headers for the mode, and keeps only the
last of duplicate JSON names, so it is not used for reading. What the attributes themselves must be says
``edda.attributes``; an event that exists is valid.

Sources: CloudEvents 1.0.2 and 0.3 (specification, JSON format, HTTP protocol binding).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from edda.attributes import is_json_type, shown
from edda.cloudevent import CloudEvent, InvalidEventError
from edda.errors import EddaError
from edda.wire.json_text import NotJsonError, check_readable, members_of_array, members_of_object

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"

#: The members of one event in JSON: name -> (value, its own text).
_Members = Mapping[str, tuple[Any, bytes]]


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
    attributes: list[tuple[str, bytes]] = []
    for raw_name, raw_value in headers:
        name = raw_name.decode("latin-1").lower()
        if name == "content-type":
            if content_type is not None:
                raise MalformedEventError("the header 'content-type' is there twice")
            content_type = raw_value.decode("latin-1").strip(" \t")
        elif name.startswith("ce-"):
            attributes.append((name, raw_value))
    media = (content_type or "").split(";", 1)[0].strip(" \t").lower()
    # The batch prefix first: it also begins with the structured one.
    if media.startswith("application/cloudevents-batch"):
        return from_batch(body, media)
    if media.startswith("application/cloudevents"):
        return [from_structured(body, media)]
    return [from_attributes(_decoded(attributes), content_type, body)]


def _decoded(headers: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    attributes: dict[str, str] = {}
    for name, raw in headers:
        if name[3:] in attributes:
            raise MalformedEventError(f"the header {shown(name)} is there twice")
        attributes[name[3:]] = decode_header(raw, name)
    if "datacontenttype" in attributes:
        raise MalformedEventError("the header 'ce-datacontenttype' must not be there: Content-Type says it")
    return attributes


def decode_header(raw: bytes, name: str) -> str:
    """A header's value: an optional quoted string, then one round of percent-decoding. Raw UTF-8 is tolerated."""
    value = raw.strip(b" \t")
    if len(value) >= 2 and value.startswith(b'"') and value.endswith(b'"'):
        value = re.sub(rb"\\(.)", rb"\1", value[1:-1], flags=re.DOTALL)
    try:
        return unquote_to_bytes(value).decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedEventError(f"the header {shown(name)} is not UTF-8 after percent-decoding") from None


def from_attributes(
    attributes: Mapping[str, str], content_type: str | None, body: bytes | None
) -> CloudEvent:
    """An event in binary mode: attributes as canonical text, data as the body; None where a transport can have none.

    An empty body is no data, unless its type is one of which nothing at all is a value (text, but not JSON).
    """
    return _build(attributes, content_type, body if body or not is_json_type(content_type) else None)


# ---------------------------------------------------------------------------------------------- JSON format


def from_structured(body: bytes, media: str = STRUCTURED) -> CloudEvent:
    """An event in the JSON event format."""
    _need_json(media)
    try:
        return _from_members(members_of_object(body))
    except NotJsonError as error:
        raise MalformedEventError(str(error)) from None


def from_batch(body: bytes, media: str = BATCH) -> list[CloudEvent]:
    """A JSON array of events; may be empty. One bad element refuses all: nothing is half accepted."""
    _need_json(media)
    events: list[CloudEvent] = []
    try:
        events.extend(map(_from_members, members_of_array(body)))
    except NotJsonError as error:
        raise MalformedEventError(str(error)) from None
    except MalformedEventError as error:
        raise MalformedEventError(f"element {len(events)} of the batch: {error.reason}") from None
    if len({event.specversion for event in events}) > 1:
        raise MalformedEventError("all elements of a batch have the same specversion")
    return events


def _from_members(members: _Members) -> CloudEvent:
    """Null attributes are absent ones."""
    attributes = {
        name: value
        for name, (value, _) in members.items()
        if name not in {"data", "data_base64"} and value is not None
    }
    content_type = attributes.pop("datacontenttype", None)
    if content_type is not None and not isinstance(content_type, str):
        raise MalformedEventError("datacontenttype must be a string")
    value, text = members.get("data", (None, None))
    encoded = _encoded(members, attributes, value)
    if encoded is not None:
        return _build(attributes, content_type, _from_base64(encoded))
    if text is None:
        return _build(attributes, content_type, None)
    if is_json_type(content_type):
        try:
            check_readable(text)
        except NotJsonError as error:
            raise MalformedEventError(f"data: {error}") from None
        return _build(attributes, content_type, text)
    return _build(attributes, content_type, _from_text(value, content_type))


def _encoded(members: _Members, attributes: dict[str, Any], data: Any) -> Any:
    """What is to be decoded as base64, if anything: version 0.3 marks ``data`` so, version 1.0 has a member for it."""
    value, _ = members.get("data_base64", (None, None))
    if attributes.get("specversion") == "0.3":
        if value is not None:
            raise MalformedEventError("data_base64 is of version 1.0; 0.3 has datacontentencoding")
        encoding = attributes.pop("datacontentencoding", None)
        if encoding is None:
            return None
        if not isinstance(encoding, str) or encoding.lower() != "base64":
            raise MalformedEventError(f"datacontentencoding {shown(encoding)} is not base64")
        return data
    if value is not None and data is not None:
        raise MalformedEventError("data and data_base64 exclude each other")
    return value


def _from_base64(encoded: Any) -> bytes:
    if not isinstance(encoded, str):
        raise MalformedEventError("data in base64 must be a string")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedEventError("the data is not base64") from None


def _from_text(value: Any, content_type: str | None) -> bytes | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise MalformedEventError(
            f"data of the content type {shown(content_type)} must be a string (or in base64)"
        )
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise MalformedEventError("data holds a lone surrogate") from None


def _need_json(media: str) -> None:
    if not media.endswith("+json"):
        raise UnsupportedFormatError(
            f"the event format {shown(media)} is not read here; send '+json', or binary mode"
        )


def _build(attributes: Mapping[str, Any], content_type: str | None, data: bytes | None) -> CloudEvent:
    given = dict(attributes)
    required = [given.pop(name, None) for name in ("specversion", "id", "source", "type")]
    for name, value in zip(("specversion", "id", "source", "type"), required, strict=True):
        if value is None:
            raise MalformedEventError(f"the required attribute {name!r} is missing")
    specversion, id_, source, type_ = required
    schema = given.pop("schemaurl" if specversion == "0.3" else "dataschema", None)
    try:
        return CloudEvent(
            id=id_,
            source=source,
            type=type_,
            data=data,
            datacontenttype=content_type,
            dataschema=schema,
            subject=given.pop("subject", None),
            time=given.pop("time", None),
            specversion=specversion,
            extensions=given,
        )
    except InvalidEventError as error:
        raise MalformedEventError(error.reason) from None
