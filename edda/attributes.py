"""What CloudEvents says about attributes, for what comes in and for what goes out. Pure functions.

Sources: CloudEvents 1.0.2 (type system, required and optional attributes), RFC 3986 (URI-reference), RFC 3339 (times),
RFC 9110 (media types).
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

#: Types that an extension attribute can have.
ExtensionValue = str | int | bool

#: Longest type, in bytes of UTF-8: types are indexed.
MAX_TYPE_BYTES: Final = 255

VERSIONS: Final = frozenset({"1.0", "0.3"})

#: Names that no extension can have: those of the attributes, and the members that hold the data.
RESERVED: Final = frozenset(
    {"id", "source", "type", "specversion", "time", "subject", "dataschema", "datacontenttype", "data"}
)
_RESERVED_IN_03: Final = RESERVED | {"schemaurl", "datacontentencoding"}

_NAME = re.compile(r"[a-z0-9]+\Z")
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d+)?"
    r"(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)\Z",
    re.ASCII,
)
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEDIA_TYPE = re.compile(rf"{_WORD}/{_WORD}[ \t]*(?:;[\t\x20-\x7e]*)?\Z")
_URI_REFERENCE = re.compile(r"(?:[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2})+\Z")
#: Control characters, surrogates and noncharacters: no CloudEvents string holds them.
_NO_TEXT = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]"
)
_INT32 = range(-(2**31), 2**31)


def shown(value: object) -> str:
    """A value in a message: quoted, escaped, and cut where it is long."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list that holds itself
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"


def fault_of_text(name: str, value: object) -> str | None:
    """What is wrong with an attribute that must be a text, or None."""
    if not isinstance(value, str):
        return f"{name} must be a string, not {type(value).__name__}"
    if not value:
        return f"{name} must not be empty"
    if not value.isprintable() and _NO_TEXT.search(value):  # the first look is the cheap one
        return f"{name} holds a control character, a lone surrogate or a noncharacter: {shown(value)}"
    return None


def fault_of_required(id: object, source: object, type: object, specversion: object) -> str | None:
    """What is wrong with the required attributes, or None."""
    fault = (
        fault_of_text("specversion", specversion)
        or fault_of_text("id", id)
        or fault_of_text("source", source)
        or fault_of_text("type", type)
    )
    if fault is not None:
        return fault
    if specversion not in VERSIONS:
        return f"specversion {shown(specversion)} is not one of 1.0 and 0.3"
    if not _URI_REFERENCE.match(str(source)):
        return f"source {shown(source)} is not a URI-reference (percent-encode what has no place in one)"
    if len(str(type).encode()) > MAX_TYPE_BYTES:
        return f"type has {len(str(type).encode())} bytes, at most {MAX_TYPE_BYTES} can be indexed"
    return None


def fault_of_optional(
    time: object, subject: object, dataschema: object, datacontenttype: object
) -> str | None:
    """What is wrong with the optional attributes, or None; None is absent."""
    if time is not None:
        if fault := fault_of_text("time", time):
            return fault
        if not is_time(str(time)):
            return f"time {shown(time)} is not an RFC 3339 time with seconds and an offset"
    if subject is not None and (fault := fault_of_text("subject", subject)):
        return fault
    if dataschema is not None:
        if fault := fault_of_text("dataschema", dataschema):
            return fault
        if not _URI_REFERENCE.match(str(dataschema)):
            return f"dataschema {shown(dataschema)} is not a URI"
    if datacontenttype is not None:
        if fault := fault_of_text("datacontenttype", datacontenttype):
            return fault
        if not is_media_type(str(datacontenttype)):
            return f"datacontenttype {shown(datacontenttype)} is not a media type"
    return None


def fault_of_extensions(extensions: Mapping[Any, object], specversion: str) -> str | None:
    """What is wrong with the extensions, or None. A reserved name in one can never stand for the attribute."""
    reserved = RESERVED if specversion == "1.0" else _RESERVED_IN_03
    for name, value in extensions.items():
        if not isinstance(name, str) or not _NAME.match(name):
            return f"{shown(name)} is no name of an attribute: use the letters a to z and digits"
        if name in reserved:
            return f"{name!r} is no extension: the name is reserved"
        if isinstance(value, bool) or (isinstance(value, int) and value in _INT32):
            continue
        if not isinstance(value, str):
            return f"the extension {name!r} must be a string, a boolean or a 32-bit integer"
        if not value.isprintable() and _NO_TEXT.search(value):
            return f"the extension {name!r} holds a control character, a lone surrogate or a noncharacter"
    return None


def fault_of_data(data: object) -> str | None:
    """What is wrong with the data, or None."""
    if data is None or isinstance(data, bytes):
        return None
    return f"data must be bytes (or None), not {type(data).__name__}"


def is_time(text: str) -> bool:
    """Whether this is an RFC 3339 date-time; a leap second is one."""
    found = _TIME.match(text)
    if found is None:
        return False
    try:
        dt.date(*map(int, found.groups()))
    except ValueError:
        return False
    return True


@lru_cache(maxsize=256)
def is_media_type(text: str) -> bool:
    """Whether this is a media type, with or without parameters. A stream of events has few of them."""
    return len(text) <= 1_000 and _MEDIA_TYPE.match(text) is not None


@lru_cache(maxsize=256)
def is_json_type(content_type: str | None) -> bool:
    """``application/json``, ``text/json``, any ``+json`` type, in any case, with any parameters; absent means JSON."""
    if content_type is None:
        return True
    media = content_type.split(";", 1)[0].strip().lower()
    return media in {"application/json", "text/json"} or media.endswith("+json")
