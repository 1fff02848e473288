"""Values and exceptions to bytes and back.

JSON by pydantic-core (models, dataclasses, enums, datetimes, UUIDs, decimals; bytes inside JSON as base64), or raw
bytes for a value that *is* bytes. What comes back is rebuilt from the annotation where there is one, and is the plain
JSON value where there is none; live and replayed code get the same.
"""

from __future__ import annotations

import sys
import traceback
import types
import typing
from functools import lru_cache
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter
from pydantic_core import PydanticSerializationError, from_json, to_json

from edda.errors import EddaError, PayloadError

OCTET_STREAM = "application/octet-stream"

_NULL = b"null"
_PLAIN: frozenset[Any] = frozenset({Any, object, dict, list, str, int, float, bool, None, type(None)})


class RecordedError(EddaError):
    """An error read from the history whose class is not loaded here (or cannot be rebuilt).

    ``type_name`` is ``module:qualname`` of the class that was raised.
    """

    code = "EDDA231"

    def __init__(self, type_name: str, message: str) -> None:
        self.type_name = type_name
        super().__init__(f"{type_name}: {message}")


def encode(value: Any, what: str) -> tuple[bytes, str | None]:
    """``(payload, content type)``; the content type of JSON is None.

    Raises PayloadError naming ``what`` when the value has no JSON form.
    """
    if value is None:
        return _NULL, None
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), OCTET_STREAM
    return encode_json(value, what), None


def encode_json(value: Any, what: str) -> bytes:
    """JSON text in UTF-8."""
    try:
        return to_json(value, bytes_mode="base64", inf_nan_mode="constants")
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        msg = (
            f"{what}: a value of type {type(value).__name__} cannot be stored ({error}). Nothing was written. "
            "Use values that have a JSON form (dict, list, str, int, float, bool, None, Pydantic models, dataclasses, "
            "enums, datetimes, UUIDs), or bytes."
        )
        raise PayloadError(msg) from error


def decode(payload: bytes, content_type: str | None, adapter: TypeAdapter[Any] | None = None) -> Any:
    """The value again."""
    if content_type == OCTET_STREAM:
        return payload
    value = from_json(payload)
    return value if adapter is None else adapter.validate_python(value)


@lru_cache(maxsize=4096)
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(
            annotation, config=ConfigDict(val_json_bytes="base64", arbitrary_types_allowed=True)
        )
    except PydanticUserError:  # models and dataclasses carry a configuration of their own
        return TypeAdapter(annotation)


def adapter_for(annotation: Any) -> TypeAdapter[Any] | None:
    """What rebuilds a value of this annotation from JSON; None where JSON already gives it."""
    if annotation in _PLAIN or annotation is bytes or isinstance(annotation, str | typing.TypeVar):
        return None
    origin = typing.get_origin(annotation)
    if origin in {dict, list} and all(argument in _PLAIN for argument in typing.get_args(annotation)):
        return None
    if origin in {typing.Union, types.UnionType} and all(a in _PLAIN for a in typing.get_args(annotation)):
        return None
    try:
        return _adapter(annotation)
    except Exception:  # noqa: BLE001, an annotation that pydantic does not know restores nothing
        return None


def type_name(cls: type) -> str:
    """``module:qualname``, by which an exception's class is found again."""
    return f"{cls.__module__}:{cls.__qualname__}"


def encode_exception(error: BaseException, *, depth: int = 3) -> bytes:
    """Type, message, arguments, attributes, traceback and cause as JSON; what has no JSON form is kept as its repr."""
    return to_json(_describe(error, depth))


def _describe(error: BaseException, depth: int) -> dict[str, Any]:
    described: dict[str, Any] = {
        "type": type_name(type(error)),
        "message": _text(error),
        "args": [_storable(argument) for argument in error.args],
        "attributes": {
            name: _storable(value) for name, value in vars(error).items() if not name.startswith("__")
        },
        "traceback": "".join(traceback.format_exception(error, limit=20, chain=False))
        .encode("utf-8", "backslashreplace")
        .decode()[-8_000:],
    }
    if error.__cause__ is not None and depth > 0:
        described["cause"] = _describe(error.__cause__, depth - 1)
    return described


def _text(error: BaseException) -> str:
    try:
        return str(error).encode("utf-8", "backslashreplace").decode()
    except Exception:  # noqa: BLE001, a broken __str__ must not hide the error
        return f"<unprintable {type(error).__name__}>"


def _storable(value: Any) -> Any:
    try:
        return from_json(to_json(value, bytes_mode="base64", inf_nan_mode="constants"))
    except Exception:  # noqa: BLE001, anything at all can hang on an exception
        return repr(value).encode("utf-8", "backslashreplace").decode()[:1_000]


def decode_exception(payload: bytes) -> BaseException:
    """The exception as it was raised: same type, message, arguments and attributes; ``__init__`` is not called.

    Only classes of modules that are loaded already, and only exceptions; anything else becomes a RecordedError.
    """
    return _rebuild(from_json(payload))


def _rebuild(described: dict[str, Any]) -> BaseException:
    cls = _find_class(described["type"])
    error: BaseException
    if cls is None:
        error = RecordedError(described["type"], described["message"])
    else:
        try:
            error = cls.__new__(cls, *described["args"])
            error.args = tuple(described["args"])
            for name, value in described["attributes"].items():
                setattr(error, name, value)
        except Exception:  # noqa: BLE001, a class with a demanding __new__
            error = RecordedError(described["type"], described["message"])
    if "cause" in described:
        error.__cause__ = _rebuild(described["cause"])
    return error


def _find_class(name: str) -> type[BaseException] | None:
    module_name, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module_name)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if isinstance(found, type) and issubclass(found, BaseException):
        return found
    return None
