"""``send_event``: one event, now, over HTTP. Without the outbox: whoever must not lose it publishes it with a turn."""

from __future__ import annotations

from typing import Any

from edda.cloudevent import CloudEvent
from edda.errors import EddaError
from edda.outbox.message import message
from outbox_relays.publisher import Confirmed, Outgoing

#: Where ``edda-framework 0.16`` sent events to by default.
KNATIVE_BROKER = "http://broker-ingress.knative-eventing.svc.cluster.local"


class EventNotSentError(EddaError, ConnectionError):
    """The other side did not take the event (or its answer was lost: send it again with the same id)."""

    code = "EDDA330"


async def send_event(
    event_type: str,
    source: str,
    data: Any,
    broker_url: str = KNATIVE_BROKER,
    datacontenttype: str | None = None,
    *,
    event_id: str | None = None,
) -> str:
    """POST one CloudEvent (structured) to ``broker_url``; its id, once the other side has answered with 2xx.

    ``data``: JSON values, Pydantic models, dataclasses, or bytes (such as a serialised protobuf message), which arrive
    as bytes. It is sent once and not tried again: in a workflow use ``send_event_transactional``.

    Raises EventNotSentError after 10 seconds, or for what the other side answered; MissingExtraError without the extra
    ``http``; PayloadError for data that cannot be sent.
    """
    from outbox_relays.http import HttpPublisher

    built = message(event_type, source, data, id=event_id, content_type=datacontenttype)
    event = CloudEvent.from_parts(
        built.type, built.source, built.event_id, built.attributes, built.data, built.content_type
    )
    publisher = HttpPublisher(broker_url, mode="structured", publish_timeout=10.0)
    await publisher.open()
    try:
        [confirm] = await publisher.publish([Outgoing(event)])
    finally:
        await publisher.close()
    if not isinstance(confirm, Confirmed):
        msg = f"event {event_type!r} from {source!r} was not taken by {broker_url}: {confirm.reason}"
        raise EventNotSentError(msg)
    return built.event_id
