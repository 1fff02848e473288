"""Stores, and gateways that are stopped at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from edda.inbox.accept import Inbox
from edda.storage.connect import open_store
from edda.storage.contract import Storage
from gateways.rabbitmq import RabbitMQGateway
from tests.inbox.wire import Wire
from tests.support.databases import Database

StartGateway = Callable[..., Awaitable[RabbitMQGateway]]


async def _store(database: Database) -> AsyncIterator[Storage]:
    store = open_store(database.url)
    await store.open()
    await store.migrate()
    yield store
    await store.close()


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Storage]:
    """One process's store."""
    async for store in _store(database):
        yield store


@pytest.fixture
async def lite(sqlite_database: Database) -> AsyncIterator[Storage]:
    """The same on SQLite alone, for what no database changes."""
    async for store in _store(sqlite_database):
        yield store


@pytest.fixture
async def start_gateway() -> AsyncIterator[StartGateway]:
    """Begin one, of a store, a URL and queues; settings by name. It need not consume yet."""
    gateways: list[tuple[RabbitMQGateway, Inbox]] = []

    async def start(store: Storage | Wire, url: str, *queues: str, **settings: Any) -> RabbitMQGateway:
        gateway = RabbitMQGateway(url, queues, **settings)
        inbox = Inbox(store, patience=1.0)  # type: ignore[arg-type]  # a wire passes on all that it has not
        gateways.append((gateway, inbox))
        await gateway.start(inbox)
        return gateway

    yield start
    for gateway, inbox in gateways:
        async with asyncio.timeout(60):
            await gateway.stop()
            await inbox.close()
