"""What the routing table says about an event: the hashes it is found by, and what it starts. Pure functions."""

from __future__ import annotations

import re
from typing import Final

from edda.attributes import shown
from edda.cloudevent import CloudEvent, InvalidEventError
from edda.inbox.shapes import event_hash, parsed_data, patterns_of
from edda.inbox.triggers import starts_of
from edda.storage.rows import NewEvent, Routing, Shape, Trigger

#: The extension that addresses an event to one instance (and its chain).
ADDRESSEE: Final = "eddainstanceid"

_INSTANCE_ID = re.compile(r"[!-~]{1,128}\Z")


class Table:
    """The routing table, by pattern."""

    def __init__(self, routing: Routing) -> None:
        self.version = routing.version
        self._shapes: dict[str, list[Shape]] = {}
        self._triggers: dict[str, list[Trigger]] = {}
        for shape in routing.shapes:
            self._shapes.setdefault(shape.pattern, []).append(shape)
        for trigger in routing.triggers:
            self._triggers.setdefault(trigger.pattern, []).append(trigger)

    def bind(self, event: CloudEvent, position: int | None = None) -> NewEvent:
        """The event with its keys and starts. Raises PayloadError for one that cannot be accepted as it is.

        An addressed event is for its instance alone: it starts nothing. The live key of a keyed start is a key of the
        event, too, so that the run that lives when it comes finds it before it ends.
        """
        addressee = addressee_of(event)
        patterns = patterns_of(event.type)
        shapes = [shape for pattern in patterns for shape in self._shapes.get(pattern, ())]
        triggers = (
            [trigger for pattern in patterns for trigger in self._triggers.get(pattern, ())]
            if addressee is None
            else []
        )
        data = parsed_data(event) if shapes or triggers else None
        starts = starts_of(event, data, triggers)
        hashes = [event_hash(shape, event, data) for shape in shapes]
        hashes += [start.live_key for start in starts]
        return NewEvent(
            digest=event.digest(),
            data_hash=event.data_hash(),
            type=event.type,
            source=event.source,
            event_id=event.id,
            attributes=event.attributes_json(),
            data=event.data,
            content_type=event.datacontenttype,
            addressee=addressee,
            keys=tuple(dict.fromkeys(found for found in hashes if found is not None)),
            starts=starts,
            position=position,
        )


def addressee_of(event: CloudEvent) -> str | None:
    """The instance that an event is for, if for one. Raises InvalidEventError for what no instance can be called."""
    value = event.extensions.get(ADDRESSEE)
    if value is None:
        return None
    if not isinstance(value, str) or not _INSTANCE_ID.match(value):
        reason = (
            f"the extension {ADDRESSEE}={shown(value)} is no instance's id: those are strings of 1 to 128 printable "
            "ASCII characters without blanks"
        )
        raise InvalidEventError(event.id, event.source, reason)
    return value
