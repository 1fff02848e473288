"""What the tests of this directory say in few words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from edda.cloudevent import CloudEvent
from outbox_relays.publisher import Confirm, Outgoing
from outbox_relays.rabbitmq import RabbitMQPublisher

EVENT = CloudEvent("a-1", "/shop", "order.paid", b'{"n":1}', "application/json", subject="Grüße €")


def event(id: str = "a-1", **changes: Any) -> CloudEvent:
    """An event of the shop."""
    return CloudEvent(**{"id": id, "source": "/shop", "type": "order.paid", "data": b"{}"} | changes)


@asynccontextmanager
async def opened(url: str, *arguments: Any, **settings: Any) -> AsyncIterator[RabbitMQPublisher]:
    """A publisher, ready, and closed at the end."""
    publisher = RabbitMQPublisher(url, *arguments, **settings)
    await publisher.open()
    try:
        yield publisher
    finally:
        await publisher.close()


async def publish(publisher: RabbitMQPublisher, event: CloudEvent = EVENT, key: str | None = None) -> Confirm:
    """One event, and what became of it."""
    [confirm] = await publisher.publish([Outgoing(event, key)])
    return confirm
