"""Two stores on one database, and the means to stop one of them in the middle."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from edda.app import EddaApp
from edda.storage.connect import open_store
from edda.storage.contract import Storage
from edda.workflow import Workflow
from tests.interleavings import given
from tests.interleavings.barrier import Barrier
from tests.interleavings.deadlocks import Deadlocks
from tests.interleavings.lost import Lossy
from tests.interleavings.raw import Raw
from tests.support.databases import Database
from tests.support.proxy import Proxy, proxied

OpenStore = Callable[..., Awaitable[Storage]]
MakeApp = Callable[..., Awaitable[EddaApp]]


@pytest.fixture
async def another_store(database: Database) -> AsyncIterator[OpenStore]:
    """Opens a store as one more process would; with a worker's name, registers it."""
    stores: list[Storage] = []

    async def make(
        worker: str | None = None, *, url: str | None = None, lease_us: int = given.LEASE_US
    ) -> Storage:
        store = open_store(url or database.url)
        stores.append(store)
        await store.open(lease_us)
        if worker is not None:
            await store.register_worker(worker, given.APP, lease_us)
        return store

    yield make
    for store in stores:
        await store.close()


@pytest.fixture
async def store(another_store: OpenStore) -> Storage:
    """The store of worker "a"."""
    return await another_store("a")


@pytest.fixture
async def other(store: Storage, another_store: OpenStore) -> Storage:
    """The store of worker "b", on the same database."""
    return await another_store("b")


@pytest.fixture
def raw(database: Database) -> Raw:
    """The database by another way."""
    return Raw(database)


@pytest.fixture
def barrier(raw: Raw) -> Barrier:
    """Stops a store in the middle."""
    return Barrier(raw)


@pytest.fixture
def deadlocks(raw: Raw) -> Iterator[Deadlocks]:
    """Counts the deadlocks of this test, also those that a store has retried."""
    counter = Deadlocks(raw)
    logger = logging.getLogger("edda.storage")
    before = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(counter)
    yield counter
    logger.removeHandler(counter)
    logger.setLevel(before)


@pytest.fixture
async def proxy(database: Database) -> AsyncIterator[Proxy | None]:
    """A proxy in front of the server; None for SQLite, which has none."""
    if database.kind == "sqlite":
        yield None
        return
    async with proxied(database.url) as running:
        yield running


@pytest.fixture
async def lossy(another_store: OpenStore, proxy: Proxy | None) -> Lossy:
    """The store of worker "a", by way of a network that loses things."""
    store = await another_store("a", url=None if proxy is None else proxy.url)
    return Lossy(store, proxy)


@pytest.fixture
async def make_app(database: Database, proxy: Proxy | None) -> AsyncIterator[MakeApp]:
    """Makes an initialised app of workflows and settings; all are shut down at the end, before the proxy is."""
    apps: list[EddaApp] = []

    async def make(*workflows: Workflow[Any, Any], **settings: Any) -> EddaApp:
        settings.setdefault("lease_seconds", 60)
        app = EddaApp(given.APP, settings.pop("url", database.url), workflows=workflows, **settings)
        apps.append(app)
        await app.initialize()
        return app

    yield make
    for app in apps:
        await app.shutdown()
