"""An event as user code receives it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from edda.cloudevent import CloudEvent


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """What ``wait_event`` and ``on_event`` handlers get.

    ``data`` is the parsed JSON, the ``model`` that was asked for, or bytes when the content type is not JSON.
    """

    data: Any
    type: str
    source: str
    id: str
    time: str | None = None
    datacontenttype: str | None = None
    subject: str | None = None
    extensions: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, attribute: str) -> Any:
        """CloudEvents attributes by name, extensions included."""
        if attribute in {"type", "source", "id", "time", "datacontenttype", "subject"}:
            return getattr(self, attribute)
        return self.extensions[attribute]


def received(event: CloudEvent, model: type[BaseModel] | None = None) -> ReceivedEvent:
    """The event with its data parsed, or validated by ``model``; what says JSON and is not comes as the bytes it is."""
    data: Any = event.data
    if event.data is not None:
        if model is not None:
            # By the text itself, not by what was read from it: JSON has no dates and no decimals.
            data = model.model_validate_json(event.data)
        elif event.is_json:
            with contextlib.suppress(ValueError):
                data = event.json()
    elif model is not None:
        data = model.model_validate(None)
    return ReceivedEvent(
        data,
        event.type,
        event.source,
        event.id,
        event.time,
        event.datacontenttype,
        event.subject,
        event.extensions,
    )
