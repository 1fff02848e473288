"""Connections, each with a thread that alone uses it: waiting for a disk or for a lock never stops the event loop."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from edda.storage.sqlite.errors import Meaning, meaning
from edda.storage.sqlite.statements import PREPARED
from edda.storage.sqlite.write_lock import BUSY_TIMEOUT, WriteLock

T = TypeVar("T")

#: Settings of every connection, in this order.
SETTINGS = (
    # Other processes are waited for, also while the journal mode is changed.
    f"busy_timeout = {int(BUSY_TIMEOUT * 1000)}",
    "journal_mode = WAL",
    # In WAL mode NORMAL would lose acknowledged commits in a power failure.
    "synchronous = FULL",
)


class ConnectionThread:
    """A connection of its own thread: made with the first transaction, and again after one that went wrong.

    Args:
        url: of the file.
        name: the thread's.
        lock: makes it a writer: its transactions begin with the write lock. Without, it can only read.
    """

    def __init__(self, url: sa.URL, name: str, lock: WriteLock | None = None) -> None:
        self._url = url
        self._lock = lock
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._connection: sqlite3.Connection | None = None
        self._alchemy: sa.Connection | None = None

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """One transaction, all of it in one call on the thread; committed when ``work`` returns."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._transaction, work)

    async def run_cold(self, work: Callable[[sa.Connection], T]) -> T:
        """The same through SQLAlchemy, on the same connection."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._cold_transaction, work)

    async def close(self) -> None:
        """Close the connection and end the thread, after what it is doing."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._disconnect)
        self._executor.shutdown(wait=True)

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connected()
        try:
            if self._lock is None:
                connection.execute("BEGIN")
            else:
                self._lock.begin(connection)
            result = work(connection)
            if connection.in_transaction:
                connection.execute("COMMIT")
        except BaseException as error:
            self._abandon(connection, error)
            raise
        finally:
            if self._lock is not None:
                self._lock.released()
        return result

    def _cold_transaction(self, work: Callable[[sa.Connection], T]) -> T:
        # Before the transaction begins: SQLAlchemy rolls back once when it meets a connection.
        alchemy = self._wrapped(self._connected())

        def transaction(_connection: sqlite3.Connection) -> T:
            with alchemy.begin():
                return work(alchemy)

        return self._transaction(transaction)

    def _abandon(self, connection: sqlite3.Connection, error: BaseException) -> None:
        """Leave no transaction open, and no connection of which nobody knows how it stands."""
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._disconnect()
            return
        if meaning(error) is Meaning.UNAVAILABLE:
            self._disconnect()

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = connect(self._url)
            # A writer asks for the lock in its own way, and behind BEGIN IMMEDIATE nothing waits any more.
            self._connection.execute(
                "PRAGMA query_only = 1" if self._lock is None else "PRAGMA busy_timeout = 0"
            )
        return self._connection

    def _wrapped(self, connection: sqlite3.Connection) -> sa.Connection:
        if self._alchemy is None:
            engine = sa.create_engine("sqlite://", creator=lambda: connection, poolclass=sa.pool.StaticPool)
            self._alchemy = engine.connect()
        return self._alchemy

    def _disconnect(self) -> None:
        with suppress(sqlite3.Error, sa.exc.DBAPIError):
            if self._alchemy is not None:
                self._alchemy.close()
                self._alchemy.engine.dispose()
        self._alchemy = None
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()


def connect(url: sa.URL) -> sqlite3.Connection:
    """A connection that begins no transaction by itself."""
    names, options = url.set(drivername="sqlite").get_dialect()().create_connect_args(url)
    options.update(
        isolation_level=None, check_same_thread=False, cached_statements=PREPARED, timeout=BUSY_TIMEOUT
    )
    connection: sqlite3.Connection = sqlite3.connect(names[0], **options)
    try:
        for setting in SETTINGS:
            connection.execute(f"PRAGMA {setting}").fetchall()
        connection.create_function("edda_lower", 1, str.lower, deterministic=True)
    except BaseException:
        connection.close()
        raise
    return connection


def file_of(url: sa.URL) -> Path:
    """The file that a URL names, also where it is written as ``file:...?uri=true``."""
    name = url.database or ""
    return Path(name.removeprefix("file:").partition("?")[0] if name.startswith("file:") else name)
