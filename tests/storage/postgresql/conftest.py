"""Stores on PostgreSQL, and connections that no store knows of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import cast

import asyncpg
import pytest

from edda.storage.postgresql.connection import Row
from edda.storage.postgresql.store import PostgreSQLStore
from tests.storage import given
from tests.storage.conftest import OpenStore
from tests.storage.postgresql.raw import Raw
from tests.support.databases import Database


@pytest.fixture
def server(postgresql_database: Database) -> Database:
    return postgresql_database


@pytest.fixture
async def store(another_store: OpenStore) -> PostgreSQLStore:
    store = cast("PostgreSQLStore", await another_store())
    await store.register_worker(given.WORKER, given.APP, given.HOUR)
    return store


@pytest.fixture
async def raw(server: Database) -> AsyncIterator[Raw]:
    """For what another process does at the wrong moment."""
    connection: asyncpg.Connection[Row] = await asyncpg.connect(server.url)
    yield Raw(connection)
    await connection.close()
