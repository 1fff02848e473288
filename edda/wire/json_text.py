"""Strict JSON, and where in the text a member's value stands: data is carried as it was written, not as it was read.

Numbers that no double holds and the order and spelling of members survive that way. Refused are names that occur twice
in one object (each reader keeps another one), NaN and infinities, lone surrogates, and what is nested too deeply to be
read again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

from edda.cloudevent import MAY_OVERFLOW

_SPACE = re.compile(r"[ \t\n\r]*")


class NotJsonError(ValueError):
    """The text is not strict JSON; the message says why."""


def parse(body: bytes) -> Any:
    """The value of a JSON text. Raises NotJsonError."""
    text = _text(body)
    value, at = _value(text, _skip(text, 0))
    _need_end(text, at)
    return value


def is_strict(body: bytes) -> bool:
    """Whether it can stand inside a JSON text as it is, and is read there as it is here."""
    try:
        parse(body)
        check_readable(body)
    except NotJsonError:
        return False
    return True


def check_readable(body: bytes) -> None:
    """Raises NotJsonError for a value that the engine's own reader would refuse: depth, surrogates, overflow."""
    try:
        value = from_json(body, allow_inf_nan=False)
        if MAY_OVERFLOW.search(body):
            json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise NotJsonError(f"the JSON cannot be read: {error}") from None


def members_of_object(body: bytes) -> dict[str, tuple[Any, bytes]]:
    """``name -> (value, the value's own text)`` of a text that is one object."""
    text = _text(body)
    members, at = _object(text, _skip(text, 0))
    _need_end(text, at)
    return members


def members_of_array(body: bytes) -> Iterator[dict[str, tuple[Any, bytes]]]:
    """The same for each element of a text that is one array of objects, in order; faults come as they are reached."""
    text = _text(body)
    at = _skip(text, 0)
    if not text.startswith("[", at):
        raise NotJsonError("a batch is a JSON array")
    at = _skip(text, at + 1)
    if text.startswith("]", at):
        _need_end(text, at + 1)
        return
    while True:
        members, at = _object(text, at)
        yield members
        at = _skip(text, at)
        if text.startswith("]", at):
            _need_end(text, at + 1)
            return
        at = _skip(text, _expect(text, at, ","))


def _object(text: str, at: int) -> tuple[dict[str, tuple[Any, bytes]], int]:
    if not text.startswith("{", at):
        raise NotJsonError("an event is a JSON object")
    members: dict[str, tuple[Any, bytes]] = {}
    at = _skip(text, at + 1)
    if text.startswith("}", at):
        return members, at + 1
    while True:
        _expect(text, at, '"')
        name, at = _value(text, at)
        if name in members:
            raise _twice(name)
        start = _skip(text, _expect(text, _skip(text, at), ":"))
        value, at = _value(text, start)
        # A lone surrogate is an escape in the text, so that the text itself can always be encoded.
        members[name] = value, text[start:at].encode()
        at = _skip(text, at)
        if text.startswith("}", at):
            return members, at + 1
        at = _skip(text, _expect(text, at, ","))


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        raise NotJsonError("the JSON is not UTF-8") from None


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None  # noqa: S101, it matches nothing at all, too
    return found.end()


def _expect(text: str, at: int, char: str) -> int:
    if not text.startswith(char, at):
        raise NotJsonError(f"the JSON cannot be read: {char!r} is expected at character {at}")
    return at + 1


def _need_end(text: str, at: int) -> None:
    if _skip(text, at) != len(text):
        raise NotJsonError(f"the JSON cannot be read: something follows its end, at character {at}")


def _value(text: str, at: int) -> tuple[Any, int]:
    try:
        return _decoder.raw_decode(text, at)
    except NotJsonError:
        raise
    except RecursionError:
        raise NotJsonError("the JSON is nested too deeply") from None
    except ValueError as error:  # also an integer of more digits than are converted
        raise NotJsonError(f"the JSON cannot be read: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _twice(name)
            seen.add(name)
    return found


def _twice(name: str) -> NotJsonError:
    return NotJsonError(f"the JSON has the name {ascii(name)[:80]} twice in one object")


def _no_constant(name: str) -> Any:
    raise NotJsonError(f"the JSON holds {name}, which is no JSON")


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
