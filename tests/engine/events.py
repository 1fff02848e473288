"""Events as tests write them."""

from __future__ import annotations

import itertools
from typing import Any

from pydantic_core import to_json

from edda.cloudevent import CloudEvent

_numbers = itertools.count(1)


def event(type: str, data: Any = None, *, id: str | None = None, **extensions: Any) -> CloudEvent:
    """An event with an id of its own, unless one is given."""
    return CloudEvent(
        id=id or f"event-{next(_numbers)}",
        source="/tests",
        type=type,
        data=None if data is None else to_json(data),
        datacontenttype=None if data is None else "application/json",
        extensions=extensions,
    )
