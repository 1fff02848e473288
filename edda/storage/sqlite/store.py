"""The SQLite store: every transaction is one call on the writer's thread, BEGIN IMMEDIATE to COMMIT.

SQLite has one writer per file, so one connection writes; a second one reads. Waiting for another process's lock happens in those
threads, never in the event loop.
"""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from edda.errors import StorageDataError, StorageUnavailableError
from edda.storage.core.store import CoreStore, Transaction, TransientError
from edda.storage.core.traits import SQLiteTraits
from edda.storage.rows import Beat

T = TypeVar("T")

#: Seconds to wait for another process's transaction before the whole transaction is tried again.
BUSY_TIMEOUT = 10.0


class SQLiteStore(CoreStore):
    """One file."""

    dialect = "sqlite"
    session_holds_writer = True

    def __init__(self, url: sa.URL, *, temporary: Path | None = None) -> None:
        super().__init__(url, SQLiteTraits())
        self._temporary = temporary
        self._engine: AsyncEngine | None = None
        self._writer: _Thread | None = None
        self._reader: _Thread | None = None

    async def open(self, lease_us: int = 30_000_000) -> None:
        """See the contract."""
        self.lease_us = lease_us
        if self._writer is None:
            self._writer = _Thread(self.url, "edda-sqlite-writer", immediate=True)
            self._reader = _Thread(self.url, "edda-sqlite-reader", immediate=False)
        await self.ping()

    async def close(self) -> None:
        """See the contract."""
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await engine.dispose()
        for thread in (self._writer, self._reader):
            if thread is not None:
                await thread.close()
        self._writer = self._reader = None
        if self._temporary is not None:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self._temporary}{suffix}").unlink(missing_ok=True)

    def engine(self) -> AsyncEngine:
        """See the contract."""
        if self._engine is None:
            self._engine = create_async_engine(self.url.set(drivername="sqlite+aiosqlite"))
            sa.event.listen(self._engine.sync_engine, "connect", _configure)
            sa.event.listen(self._engine.sync_engine, "begin", _begin_immediate)
        return self._engine

    async def _once(self, work: Transaction[T], *, write: bool) -> T:
        thread = self._writer if write else self._reader
        if thread is None:
            msg = "the SQLite store is not open"
            raise StorageUnavailableError(msg)
        self.statements += 1
        return await thread.run(work)

    def _classify(self, error: BaseException) -> BaseException | None:
        return classify(error)

    def heart(self) -> SQLiteHeart:
        """See the contract."""
        return SQLiteHeart(self)


def classify(error: BaseException) -> BaseException | None:
    """What a driver's error means."""
    if isinstance(error, sa.exc.DBAPIError):
        error = error.orig or error
    text = str(error)
    if isinstance(error, sqlite3.OperationalError):
        if "locked" in text or "busy" in text:
            return TransientError(text)
        if any(word in text for word in ("disk", "unable to open", "readonly", "I/O")):
            return StorageUnavailableError(
                f"SQLite: {text}; free space, or make the file and its directory writable"
            )
    if (
        isinstance(error, sqlite3.DataError | OverflowError | sqlite3.IntegrityError | UnicodeEncodeError)
        or "too big" in text
    ):
        return StorageDataError(f"SQLite refuses a value: {text}")
    return None


class _Thread:
    """A connection with a thread of its own."""

    def __init__(self, url: sa.URL, name: str, *, immediate: bool) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._engine = make_engine(url, immediate=immediate)
        self._connection: sa.Connection | None = None

    async def run(self, work: Transaction[T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._transaction, work)

    def _transaction(self, work: Transaction[T]) -> T:
        if self._connection is None:
            self._connection = self._engine.connect()
        with self._connection.begin():
            return work(self._connection)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, self._dispose)
        self._executor.shutdown(wait=True)

    def _dispose(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._engine.dispose()


class SQLiteHeart:
    """The lease thread's own connection. Its statements block only that thread."""

    def __init__(self, store: SQLiteStore) -> None:
        self._store = store
        self._engine = make_engine(store.url, immediate=True)

    async def beat(self, worker: str, app: str, lease_us: int) -> Beat:
        """See the contract."""
        try:
            with self._engine.begin() as connection:
                return self._store.beat_on(connection, worker, app, lease_us)
        except sa.exc.DBAPIError as error:
            raise StorageUnavailableError(f"SQLite: {error.orig}") from error
        finally:
            self._store.statements += 1

    async def close(self) -> None:
        """See the contract."""
        self._engine.dispose()


def make_engine(url: sa.URL, *, immediate: bool) -> sa.Engine:
    """A sync engine whose connections are configured; writers begin at once, so that nothing is upgraded later."""
    engine = sa.create_engine(
        url.set(drivername="sqlite"), poolclass=sa.pool.StaticPool, connect_args={"check_same_thread": False}
    )
    sa.event.listen(engine, "connect", _configure)
    sa.event.listen(engine, "begin", _begin_immediate if immediate else _begin)
    return engine


def _configure(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT * 1000)}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _begin_immediate(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN")
