"""Requests as senders make them."""

from __future__ import annotations

import json
from typing import Any

Headers = list[tuple[bytes, bytes]]

#: The four required attributes.
MINIMAL: dict[str, Any] = {"specversion": "1.0", "id": "a-1", "source": "/shop", "type": "order.created"}

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"


def binary(
    body: bytes = b"", content_type: str | None = None, /, **changes: str | bytes | None
) -> tuple[Headers, bytes]:
    """A request in binary mode; an attribute that is None is left out."""
    attributes = {**MINIMAL, **changes}
    headers = [
        (b"ce-" + name.encode(), value if isinstance(value, bytes) else value.encode())
        for name, value in attributes.items()
        if value is not None
    ]
    if content_type is not None:
        headers.append((b"content-type", content_type.encode()))
    return headers, body


def form(**changes: Any) -> dict[str, Any]:
    """An event in JSON; what is absent must be asked for by ``without``."""
    return {**MINIMAL, **changes}


def without(name: str, **changes: Any) -> dict[str, Any]:
    """An event in JSON that lacks an attribute."""
    return {key: value for key, value in form(**changes).items() if key != name}


def structured(body: Any, content_type: str = STRUCTURED) -> tuple[Headers, bytes]:
    """A request in structured mode (or, by its content type, a batch); bytes go as they are."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return [(b"content-type", content_type.encode())], raw
