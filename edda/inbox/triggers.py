"""What an event starts. Triggers are rows, so that a gateway without user code starts the workflows of any app."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from uuid_utils import uuid7

from edda.cloudevent import CloudEvent
from edda.history.event_input import encode_input
from edda.inbox.shapes import canonical_text, value_at
from edda.storage.rows import NewInstance, Trigger

log = logging.getLogger("edda.inbox")


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
    """At most one live run per value of the key; None: one run per event.

    An event without the key (absent, or null) starts a run of its own: as in a unique index, nothing equals nothing.
    It could never be told which run it belongs to, and not starting it would lose it without a trace.
    """
    if trigger.policy != "key" or trigger.key_path is None:
        return None
    value = value_at(event, data, trigger.key_path)
    if value is None:
        log.warning(
            "event_without_key_starts_a_run_of_its_own",
            extra={"workflow": trigger.workflow, "key": trigger.key_path, "event_id": event.id},
        )
        return None
    text = canonical_text(value, trigger.key_path)
    return hashlib.sha256(f"{trigger.app}\0{trigger.workflow}\0{text}".encode()).digest()
