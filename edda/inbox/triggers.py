"""What an event starts. Triggers are rows, so that a gateway without user code starts the workflows of any app."""

from __future__ import annotations

import hashlib
from typing import Any

from uuid_utils import uuid7

from edda.cloudevent import CloudEvent
from edda.history.event_input import encode_input
from edda.inbox.shapes import canonical_text, value_at
from edda.storage.rows import NewInstance, Trigger


def starts_of(event: CloudEvent, data: Any, triggers: list[Trigger]) -> tuple[NewInstance, ...]:
    """One new instance per trigger that the event fits; ``data`` is its parsed JSON data."""
    if not triggers:
        return ()
    payload = encode_input(event)
    return tuple(
        NewInstance(
            id=str(uuid7()),
            app=trigger.app,
            workflow=trigger.workflow,
            input=payload,
            version=trigger.version,
            live_key=_live_key(trigger, event, data),
        )
        for trigger in triggers
    )


def _live_key(trigger: Trigger, event: CloudEvent, data: Any) -> bytes | None:
    """At most one live run per value of the key; None: one run per event."""
    if trigger.policy != "key" or trigger.key_path is None:
        return None
    value = canonical_text(value_at(event, data, trigger.key_path), trigger.key_path)
    return hashlib.sha256("\0".join((trigger.app, trigger.workflow, value)).encode()).digest()
