"""The housekeeping statements: renew this worker's row, and look around for what waits to be done."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

import sqlalchemy as sa

from edda.storage.rows import LEFT_AFTER_US, Beat
from edda.storage.sqlite.connection import connect
from edda.storage.sqlite.errors import translate
from edda.storage.sqlite.write_lock import WriteLock

_RUNNABLE = "FROM edda_instances i WHERE i.state = 'runnable' AND i.app = :app"
_EARLIEST = f"(SELECT min(i.available_at) {_RUNNABLE} AND i.priority = p.priority AND i.available_at > {{}})"
# From one priority (and one destination) to the next by the index: what is not available yet, or waits for an operator,
# may be many rows, and is not walked through.
_LOOK = f"""
WITH RECURSIVE
priorities(priority) AS (
    SELECT max(i.priority) {_RUNNABLE}
    UNION ALL
    SELECT (SELECT max(i.priority) {_RUNNABLE} AND i.priority < p.priority)
    FROM priorities p WHERE p.priority IS NOT NULL
),
destinations(name) AS (
    SELECT min(destination) FROM edda_outbox
    UNION ALL
    SELECT (SELECT min(o.destination) FROM edda_outbox o WHERE o.destination > d.name)
    FROM destinations d WHERE d.name IS NOT NULL
)
SELECT
    (SELECT min(expires_at) FROM edda_workers WHERE dead = 0 AND id <> :worker),
    (SELECT min(deadline) FROM edda_waits WHERE due = 0 AND deadline IS NOT NULL),
    (SELECT min({_EARLIEST.format(0)}) FROM priorities p) <= :now,
    EXISTS (
        SELECT 1 FROM destinations d CROSS JOIN edda_outbox o ON o.destination = d.name
        WHERE o.state IN ('pending', 'retrying') AND (o.state = 'pending' OR o.available_at <= :now)
    ),
    (SELECT min({_EARLIEST.format(":now")}) FROM priorities p),
    EXISTS (SELECT 1 FROM edda_unmarked WHERE created_at <= :now - {LEFT_AFTER_US})
"""


def now_us() -> int:
    """SQLite has no clock of its own: the machine's is the one that all processes of a file share."""
    return time.time_ns() // 1_000


def look(c: sqlite3.Connection, now: int, worker: str, app: str, *, alive: bool) -> Beat:
    """What waits for somebody; one statement of look-ups in indexes."""
    values = {"worker": worker, "app": app, "now": now}
    ((foreign_expiry, next_deadline, runnable, outbox, next_available, unmarked),) = c.execute(_LOOK, values)
    return Beat(
        alive,
        now,
        foreign_expiry,
        next_deadline,
        bool(runnable),
        bool(outbox),
        next_available,
        unmarked=bool(unmarked),
    )


class SQLiteHeart:
    """A connection of the lease thread's own; waiting for the lock blocks that thread alone."""

    def __init__(
        self, url: sa.URL, lock: WriteLock, offset_us: Callable[[], int], count: Callable[[], None]
    ) -> None:
        self._url = url
        self._lock = lock
        self._offset_us = offset_us
        self._count = count
        self._connection: sqlite3.Connection | None = None

    async def beat(self, worker: str, app: str, lease_us: int) -> Beat:
        self._count()
        try:
            if self._connection is None:
                self._connection = connect(self._url)
                self._connection.execute("PRAGMA busy_timeout = 0")
            return self._beat(self._connection, worker, app, lease_us)
        except BaseException as error:
            # Whatever it was, the next beat starts with a fresh connection.
            await self.close()
            if isinstance(error, Exception):
                raise translate(error) from error
            raise

    async def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()

    def _beat(self, c: sqlite3.Connection, worker: str, app: str, lease_us: int) -> Beat:
        self._lock.begin(c)
        try:
            now = now_us() + self._offset_us()
            renewed = c.execute(
                "UPDATE edda_workers SET expires_at = ? WHERE id = ? AND dead = 0", (now + lease_us, worker)
            )
            beat = look(c, now, worker, app, alive=bool(renewed.rowcount))
            c.execute("COMMIT")
        finally:
            self._lock.released()
        return beat
