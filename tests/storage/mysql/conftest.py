"""Stores on MySQL and on MariaDB: each test runs on both."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from edda.storage.mysql.connection import Link
from edda.storage.mysql.store import MySQLStore
from tests.storage.mysql import on
from tests.support.databases import Database

OpenStore = Callable[[], Awaitable[MySQLStore]]
OpenLink = Callable[[], Awaitable[Link]]


@pytest.fixture(params=["mysql", "mariadb"])
def server(request: pytest.FixtureRequest) -> Database:
    database: Database = request.getfixturevalue(f"{request.param}_database")
    return database


@pytest.fixture
async def another_store(server: Database) -> AsyncIterator[OpenStore]:
    """Opens one more process's store on the same database."""
    stores: list[MySQLStore] = []

    async def make() -> MySQLStore:
        store = on.new_store(server.url)
        stores.append(store)
        await store.open()
        return store

    yield make
    for store in stores:
        await store.close()


@pytest.fixture
async def store(another_store: OpenStore) -> MySQLStore:
    store = await another_store()
    await store.register_worker(on.WORKER, on.APP, 60_000_000)
    return store


@pytest.fixture
async def link(store: MySQLStore) -> AsyncIterator[Link]:
    """A connection by itself, for what another process does at the wrong moment."""
    link = await store._connect()
    yield link
    link.close()
