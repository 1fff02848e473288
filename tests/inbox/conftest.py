"""An open, migrated store on every database, and inboxes that are closed at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from edda.inbox.accept import Inbox
from edda.storage.connect import open_store
from edda.storage.contract import Storage
from tests.inbox.wire import Wire
from tests.support.databases import Database

MakeInbox = Callable[..., Inbox]


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Storage]:
    """One process's store."""
    store = open_store(database.url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def lite(sqlite_database: Database) -> AsyncIterator[Storage]:
    """The same on SQLite alone, for what no database changes."""
    store = open_store(sqlite_database.url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def make_inbox() -> AsyncIterator[MakeInbox]:
    """``make_inbox(store, ...)``."""
    inboxes: list[Inbox] = []

    def make(store: Storage | Wire, **settings: Any) -> Inbox:
        inbox = Inbox(store, **settings)  # type: ignore[arg-type]  # a wire passes on all that it has not
        inboxes.append(inbox)
        return inbox

    yield make
    for inbox in inboxes:
        await inbox.close()
