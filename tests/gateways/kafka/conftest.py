"""Stores, inboxes and gateways, which are stopped at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from edda.inbox.accept import Inbox
from edda.storage.connect import open_store
from edda.storage.contract import Storage
from gateways.kafka import KafkaGateway
from tests.support.databases import Database
from tests.support.kafka import Kafka, new_name

MakeGateway = Callable[..., Awaitable[KafkaGateway]]


async def _store(database: Database) -> AsyncIterator[Storage]:
    store = open_store(database.url)
    await store.open()
    await store.migrate()
    yield store
    await store.close()


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Storage]:
    """One process's store, on each database."""
    async for store in _store(database):
        yield store


@pytest.fixture
async def lite(sqlite_database: Database) -> AsyncIterator[Storage]:
    """The same on SQLite alone, for what no database changes."""
    async for store in _store(sqlite_database):
        yield store


@pytest.fixture
def group() -> str:
    """A group of the test's own."""
    return new_name("g")


@pytest.fixture
async def make_gateway(kafka: Kafka, group: str) -> AsyncIterator[MakeGateway]:
    """Start a gateway on topics, into a store or an inbox; settings by name. Times are those a test can wait for."""
    gateways: list[KafkaGateway] = []
    inboxes: list[Inbox] = []

    async def make(into: Storage | Inbox, *topics: str, **settings: Any) -> KafkaGateway:
        if not isinstance(into, Inbox):
            into = Inbox(into)
            inboxes.append(into)
        address = settings.pop("bootstrap_servers", kafka.bootstrap)
        defaults: dict[str, Any] = {"session_timeout": 2.0, "stall_after": 4.0, "group_id": group}
        gateway = KafkaGateway(address, topics, **defaults | settings)
        gateways.append(gateway)
        await gateway.start(into)
        return gateway

    yield make
    for gateway in gateways:
        await gateway.stop()
    for inbox in inboxes:
        await inbox.close()
