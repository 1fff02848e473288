"""A gateway in a process of its own."""

from __future__ import annotations

import asyncio

from edda.inbox.accept import Inbox
from edda.storage.connect import open_store
from gateways.rabbitmq import RabbitMQGateway
from gateways.rabbitmq.acks import Acks


async def stop_before_acknowledging(database_url: str, broker_url: str, queue: str) -> None:
    """Stores what comes, and never gets as far as the acknowledgement."""

    async def acknowledge(_: Acks, __: object) -> None:
        print("committed", flush=True)
        await asyncio.Event().wait()

    Acks.acknowledge = acknowledge  # type: ignore[method-assign,assignment]
    store = open_store(database_url)
    await store.open()
    gateway = RabbitMQGateway(broker_url, [queue])
    await gateway.start(Inbox(store))
    await asyncio.Event().wait()
