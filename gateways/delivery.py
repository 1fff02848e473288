"""One message as its broker gave it, and what is kept of it when it can never become an event."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass

from pydantic_core import to_json

from edda.cloudevent import CloudEvent
from edda.errors import EddaError
from edda.storage.rows import NewDeadLetter

_REASON_LENGTH = 2_000


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message before anybody has looked into it.

    Attributes:
        origin: For people: where it came from, e.g. ``kafka:<cluster>/orders/3@15`` or ``rabbitmq:shipments``.
        topic: The topic or queue.
        body: Its bytes; None for a record without a value.
        headers: Name and raw value, in the order of the wire; a name may be there twice.
        content_type: What the transport says of the body.
        key: Kafka's key, RabbitMQ's routing key.
        stable_id: The same whenever this message is delivered again, and no other message's; None: it has none.
        attempts: How often it was delivered, this time included, as far as the broker tells.
    """

    origin: str
    topic: str
    body: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    content_type: str | None = None
    key: bytes | None = None
    stable_id: str | None = None
    attempts: int = 1


#: Makes an event of a message that is no CloudEvent; None: it is of no interest, and settled without a trace. Its id
#: must be the same at every delivery (``delivery.stable_id`` is), else a repeated one counts twice.
Mapping = Callable[[Delivery], CloudEvent | None]


@dataclass(frozen=True, slots=True)
class Poison:
    """It can never become an event, and why."""

    reason: str


def bind(
    delivery: Delivery,
    read: Callable[[Delivery], CloudEvent | None],
    mapping: Mapping | None,
    max_bytes: int,
) -> CloudEvent | Poison | None:
    """The event of a message. Pure, and it never raises: whatever a message holds, its neighbours are not harmed.

    Args:
        delivery: the message.
        read: the transport's strict edge: the event, None if the message does not claim to be a CloudEvent; raises
            MalformedEventError for one that claims it and is none.
        mapping: for messages that do not claim it.
        max_bytes: of body, headers and key together.
    """
    size = len(delivery.body or b"") + len(delivery.key or b"")
    size += sum(len(name) + len(value) for name, value in delivery.headers)
    if size > max_bytes:
        return Poison(f"the message has {size} bytes, and at most {max_bytes} are taken (max_bytes)")
    try:
        event = read(delivery)
    except EddaError as error:
        return Poison(str(error))
    if event is not None:
        return event
    if mapping is None:
        return Poison(
            "the message is no CloudEvent (no content type application/cloudevents+json and no ce headers), and the "
            "gateway has no mapping for it; give one: mapping=lambda delivery: CloudEvent(...)"
        )
    try:
        return mapping(delivery)
    except Exception as error:  # noqa: BLE001, the user's code; the message is kept with the reason
        return Poison(f"the mapping raised {type(error).__name__}: {error}")


def letter(delivery: Delivery, reason: str, position: int | None = None) -> NewDeadLetter:
    """What is kept of it: everything that came, and why it went no further."""
    headers = [(name, base64.b64encode(value).decode()) for name, value in delivery.headers]
    has_type = any(name.lower() == "content-type" for name, _ in delivery.headers)
    if delivery.key is not None:
        headers.insert(0, ("edda-key", base64.b64encode(delivery.key).decode()))
    if delivery.content_type is not None and not has_type:
        headers.insert(0, ("content-type", base64.b64encode(delivery.content_type.encode()).decode()))
    # A mapping's error may say anything, and is stored as text.
    told = "".join(char if char.isprintable() else " " for char in reason[:_REASON_LENGTH])
    return NewDeadLetter(
        delivery.origin, delivery.body or b"", to_json(headers), told, delivery.attempts, position
    )
