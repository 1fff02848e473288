"""Stores on SQLite alone: what the conformance suite one directory up cannot ask of every database."""

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from edda.storage.contract import Storage
from edda.storage.sqlite.store import SQLiteStore
from tests.support.databases import Database

OpenRaw = Callable[[], sqlite3.Connection]


@pytest.fixture
def server(sqlite_database: Database) -> Database:
    return sqlite_database


@pytest.fixture
async def sqlite_store(store: Storage) -> SQLiteStore:
    assert isinstance(store, SQLiteStore)
    return store


@pytest.fixture
async def raw(store: Storage, server: Database) -> AsyncIterator[sqlite3.Connection]:
    """Another process's connection, as far as SQLite can tell: it waits for no lock."""
    with raw_connection(server) as connection:
        yield connection


@contextmanager
def raw_connection(server: Database) -> Iterator[sqlite3.Connection]:
    name = sa.make_url(server.url).database
    assert name is not None
    connection = sqlite3.connect(name, isolation_level=None, timeout=0, check_same_thread=False)
    try:
        yield connection
    finally:
        connection.close()
