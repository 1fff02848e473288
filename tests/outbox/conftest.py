"""An open, migrated store on every database, beside a table of the user's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from edda.storage.contract import Storage
from tests.outbox.given import open_with_orders
from tests.support.databases import Database


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Storage]:
    """One process's store."""
    async with open_with_orders(database) as store:
        yield store
