"""One conformance suite: each test of this directory runs on every store that keeps the contract.

``store`` is one process's store, migrated and open, with the worker ``given.WORKER`` registered. ``another_store()``
opens one more process's store on the same database (for memory, which has no processes: the same one). ``sql_store``
is a store that has SQL, for what users' own sessions do.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from edda.storage.connect import open_store
from edda.storage.contract import Storage
from tests.storage import given
from tests.support.databases import KINDS, Database

OpenStore = Callable[[], Awaitable[Storage]]
OpenUrl = Callable[[str], Awaitable[Storage]]

MEMORY = "memory"


@pytest.fixture(params=[*KINDS, MEMORY])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Database | None:
    """An empty database; None: the memory store brings its own."""
    if request.param == MEMORY:
        return None
    database: Database = request.getfixturevalue(f"{request.param}_database")
    return database


@pytest.fixture
async def opened() -> AsyncIterator[OpenUrl]:
    """Opens stores of prepared databases, and closes them at the end."""
    stores: list[Storage] = []

    async def make(url: str) -> Storage:
        store = open_store(url)
        stores.append(store)
        await store.open()
        return store

    yield make
    for store in stores:
        await store.close()


@pytest.fixture
async def another_store(server: Database | None, opened: OpenUrl) -> OpenStore:
    shared: list[Storage] = []

    async def make() -> Storage:
        if server is not None:
            return await opened(server.url)
        if not shared:
            shared.append(await opened("memory:"))
        return shared[0]

    return make


@pytest.fixture
async def store(another_store: OpenStore) -> Storage:
    store = await another_store()
    await store.register_worker(given.WORKER, given.APP, given.HOUR)
    return store


@pytest.fixture
async def sql_store(database: Database, opened: OpenUrl) -> Storage:
    store = await opened(database.url)
    await store.register_worker(given.WORKER, given.APP, given.HOUR)
    return store
