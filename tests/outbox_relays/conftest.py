"""Stores, a sink, and relays that are stopped at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from edda.storage.connect import open_store
from edda.storage.contract import Storage
from outbox_relays.http import HttpPublisher
from outbox_relays.relay import Relay
from outbox_relays.retry import Backoff
from tests.outbox_relays.sink import Sink, open_sink
from tests.support.databases import Database

OpenStore = Callable[[], Awaitable[Storage]]
MakeRelay = Callable[..., Awaitable[Relay]]

#: Retries that a test can wait for.
QUICK = Backoff(first=0.02, longest=0.05)


@pytest.fixture
async def another_store(database: Database) -> AsyncIterator[OpenStore]:
    """One more process's store on the same database, each time it is called."""
    stores: list[Storage] = []

    async def make() -> Storage:
        store = open_store(database.url)
        stores.append(store)
        await store.open()
        return store

    yield make
    for store in stores:
        await store.close()


@pytest.fixture
async def store(another_store: OpenStore) -> Storage:
    """One process's store."""
    return await another_store()


@pytest.fixture
async def lite(sqlite_database: Database) -> AsyncIterator[Storage]:
    """The same on SQLite alone, for what no database changes."""
    store = open_store(sqlite_database.url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    """Where events go."""
    async with open_sink() as sink:
        yield sink


@pytest.fixture
async def make_relay() -> AsyncIterator[MakeRelay]:
    """Start a relay of a store to a URL; settings of publisher and relay by name."""
    relays: list[Relay] = []

    async def make(store: Storage, url: str, **settings: Any) -> Relay:
        of_relay = {
            name: settings.pop(name)
            for name in ("owner", "lease_seconds", "batch", "max_bytes")
            if name in settings
        }
        backoff = settings.pop("backoff", QUICK)
        relay = Relay(store, HttpPublisher(url, **settings), backoff=backoff, **of_relay)
        relays.append(relay)
        await relay.start()
        return relay

    yield make
    for relay in relays:
        await relay.stop()
