"""``SQLiteStore``: which transaction runs on which thread, and what happens when one fails.

Three threads, each with a connection: one writes, one reads for the engine, one reads for people, whose queries may
take long. Users' sessions have connections of their own, and so has each heart.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from edda.errors import ConfigurationError, StorageUnavailableError
from edda.storage.core.store import CoreStore, Transaction, TransientError
from edda.storage.core.traits import SQLiteTraits
from edda.storage.rows import (
    AcceptBatch,
    AcceptResult,
    Beat,
    ClaimedInstance,
    FlushResult,
    LoadedInstance,
    Turn,
)
from edda.storage.sqlite import accept, claim, flush, heart, signal
from edda.storage.sqlite.connection import SETTINGS, ConnectionThread, file_of
from edda.storage.sqlite.errors import Meaning, cannot_open, driver_error, meaning, translate
from edda.storage.sqlite.write_lock import BUSY_TIMEOUT, WriteLock

log = logging.getLogger("edda.storage")

T = TypeVar("T")

#: UPDATE ... FROM came with 3.33.
_OLDEST = (3, 33, 0)

#: What ``PRAGMA synchronous`` answers for FULL; EXTRA is more.
_FULL = 2


class SQLiteStore(CoreStore):
    """One file, on this machine."""

    dialect = "sqlite"
    session_holds_writer = True

    def __init__(self, url: sa.URL, *, temporary: Path | None = None) -> None:
        super().__init__(url, SQLiteTraits())
        self._temporary = temporary
        self._lock = WriteLock()
        self._users: AsyncEngine | None = None
        self._make_threads()

    def _make_threads(self) -> None:
        self._writer = ConnectionThread(self.url, "edda-sqlite-writer", self._lock)
        self._reader = ConnectionThread(self.url, "edda-sqlite-reader")
        self._cold_reader = ConnectionThread(self.url, "edda-sqlite-cold-reader")
        self._closed = False

    # ---------------------------------------------------------------- life

    async def open(self, lease_us: int = 30_000_000) -> None:
        """See the contract; raises ConfigurationError for a file that cannot be there or cannot be written to."""
        self.lease_us = lease_us
        if self._closed:
            self._make_threads()
        try:
            await self._again(lambda: self._writer.run(_check))
        except StorageUnavailableError as error:
            if isinstance(error.__cause__, sqlite3.Error):
                raise cannot_open(file_of(self.url), error.__cause__) from error.__cause__
            raise

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._users is not None:
            engine, self._users = self._users, None
            await engine.dispose()
        for thread in (self._writer, self._reader, self._cold_reader):
            await thread.close()
        self._remove_temporary()

    def _remove_temporary(self) -> None:
        if self._temporary is not None:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self._temporary}{suffix}").unlink(missing_ok=True)

    async def ping(self) -> None:
        await self._read(lambda c: c.execute("SELECT 1").fetchall())

    async def now(self) -> int:
        return self._time()

    def engine(self) -> AsyncEngine:
        if self._users is None:
            self._users = create_async_engine(self.url.set(drivername="sqlite+aiosqlite"))
            sa.event.listen(self._users.sync_engine, "connect", _configure)
            sa.event.listen(self._users.sync_engine, "begin", self._begin_session)
        return self._users

    def _begin_session(self, connection: sa.Connection) -> None:
        with self._lock.waiting():
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    # ---------------------------------------------------------------- hot transactions

    async def accept(self, batch: AcceptBatch) -> AcceptResult:
        return await self._write(lambda c, now: accept.accept(c, now, batch))

    async def mark_due(self, hashes: Sequence[bytes], limit: int = 1000) -> tuple[frozenset[str], bool]:
        return await self._write(lambda c, now: signal.mark_due(c, now, hashes, limit))

    async def fire_timers(self, limit: int = 1000) -> tuple[frozenset[str], int]:
        return await self._write(lambda c, now: signal.fire_timers(c, now, limit))

    async def claim(
        self,
        app: str,
        workflows: Sequence[str],
        worker: str,
        limit: int,
        versions: Sequence[tuple[str, str]] = (),
    ) -> list[ClaimedInstance]:
        if not workflows or limit <= 0:
            return []
        return await self._write(lambda c, now: claim.claim(c, now, app, workflows, worker, limit, versions))

    async def owned(self, worker: str) -> list[ClaimedInstance]:
        return await self._read(lambda c: claim.owned(c, worker))

    async def load(self, instance_ids: Sequence[str], *, history: bool = True) -> dict[str, LoadedInstance]:
        return await self._read(lambda c: claim.load(c, instance_ids, history=history))

    async def flush(self, turns: Sequence[Turn]) -> FlushResult:
        self.flushes += 1
        try:
            return await self._write(lambda c, now: flush.flush(c, now, turns, careful=False))
        except flush.RepeatedFlushError:
            return await self._write(lambda c, now: flush.flush(c, now, turns, careful=True))

    async def poll(self, app: str) -> Beat:
        return await self._read(lambda c: heart.look(c, self._time(), "", app, alive=True))

    def heart(self) -> heart.SQLiteHeart:
        return heart.SQLiteHeart(self.url, self._lock, lambda: self.clock_offset_us, self._count)

    # ---------------------------------------------------------------- how a transaction runs

    async def _write(self, work: Callable[[sqlite3.Connection, int], T]) -> T:
        # The time is taken under the lock: behind it nobody else commits at an earlier one.
        return await self._again(lambda: self._writer.run(lambda c: work(c, self._time())))

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._again(lambda: self._reader.run(work))

    async def _run(self, work: Transaction[T], *, write: bool = True) -> T:
        thread = self._writer if write else self._cold_reader
        return await self._again(lambda: thread.run_cold(work))

    async def _again(self, once: Callable[[], Awaitable[T]]) -> T:
        """Run one transaction, again if somebody else was in its way."""
        give_up = time.monotonic() + BUSY_TIMEOUT
        while True:
            if self._closed:
                raise StorageUnavailableError(
                    "the SQLite store is closed; nothing was written. Call open() first."
                )
            self._count()
            try:
                return await once()
            except Exception as error:
                if meaning(error) is not Meaning.AGAIN or time.monotonic() > give_up:
                    translated = translate(error)
                    if translated is error:
                        raise
                    raise translated from driver_error(error)
                log.debug("transaction_again", extra={"error": str(error)})
            await asyncio.sleep(random.random() * 0.01)  # noqa: S311, jitter

    def _classify(self, error: BaseException) -> BaseException | None:
        if meaning(error) is Meaning.AGAIN:
            return TransientError(str(driver_error(error)))
        translated = translate(error)
        return None if translated is error else translated

    def _time(self) -> int:
        return heart.now_us() + self.clock_offset_us

    def _count(self) -> None:
        self.statements += 1


def _check(c: sqlite3.Connection) -> None:
    """Whether SQLite is able to, and whether it took the settings: it refuses some without an error."""
    try:
        c.execute("SELECT json_group_array(1)").fetchall()
        able = sqlite3.sqlite_version_info >= _OLDEST
    except sqlite3.OperationalError:
        able = False
    if not able:
        raise ConfigurationError(
            f"SQLite {sqlite3.sqlite_version}, with which this Python is built, cannot run Edda: it needs "
            f"{'.'.join(map(str, _OLDEST))} or newer, with the JSON functions. Nothing was written. Use another Python "
            "(those of python.org and of uv have it)."
        )
    # BEGIN IMMEDIATE does not say that a file is read-only; this does, and is undone.
    for statement in ("SAVEPOINT probe", "CREATE TABLE edda_probe (a)", "ROLLBACK TO probe", "RELEASE probe"):
        c.execute(statement)
    ((journal,),) = c.execute("PRAGMA journal_mode")
    ((synchronous,),) = c.execute("PRAGMA synchronous")
    if journal != "wal":
        log.warning(
            "journal_mode is %s, WAL was refused: readers and the writer stop each other. Put the file on a local "
            "file system",
            journal,
        )
    if synchronous < _FULL:
        log.warning("synchronous is %s, not FULL: a power failure loses acknowledged commits", synchronous)


def _configure(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    for setting in SETTINGS:
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()
