"""The housekeeping statement: renew this worker's row, and look around for what waits to be done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from edda.storage.postgresql.connection import Link, Row, one
from edda.storage.postgresql.errors import translate
from edda.storage.postgresql.rows import CLOCK
from edda.storage.rows import LEFT_AFTER_US, Beat

_RUNNABLE = "edda_instances i WHERE i.state = 'runnable' AND i.app = $3"

# By priority, of which there are few, each look is one step into the index, whatever waits to be run.
_PRIORITIES = f"""
priorities AS (
    (SELECT i.priority FROM {_RUNNABLE} ORDER BY i.priority DESC LIMIT 1)
    UNION ALL
    SELECT (SELECT i.priority FROM {_RUNNABLE} AND i.priority < p.priority ORDER BY i.priority DESC LIMIT 1)
    FROM priorities p WHERE p.priority IS NOT NULL
), available AS MATERIALIZED (
    SELECT
        (SELECT i.available_at FROM {_RUNNABLE} AND i.priority = p.priority
         ORDER BY i.priority DESC, i.available_at LIMIT 1) AS first,
        (SELECT i.available_at FROM {_RUNNABLE} AND i.priority = p.priority AND i.available_at > (SELECT now FROM clock)
         ORDER BY i.priority DESC, i.available_at LIMIT 1) AS next
    FROM priorities p WHERE p.priority IS NOT NULL
)"""

_LOOK = f"""
SELECT clock.now,
    (SELECT min(w.expires_at) FROM edda_workers w WHERE NOT w.dead AND w.id <> $2) AS foreign_expiry,
    (SELECT min(w.deadline) FROM edda_waits w WHERE NOT w.due AND w.deadline IS NOT NULL) AS next_deadline,
    EXISTS (SELECT 1 FROM available a WHERE a.first <= clock.now) AS runnable,
    (SELECT min(a.next) FROM available a) AS next_available,
    EXISTS (SELECT 1 FROM edda_outbox o WHERE o.state = 'pending') OR EXISTS (
        SELECT 1 FROM edda_outbox o WHERE o.state = 'retrying' AND o.available_at <= clock.now) AS outbox,
    coalesce((SELECT min(u.created_at) FROM edda_unmarked u) <= clock.now - {LEFT_AFTER_US}, false) AS unmarked
"""

POLL = f"WITH RECURSIVE {CLOCK}, {_PRIORITIES} {_LOOK}, true AS alive FROM clock"

BEAT = f"""
WITH RECURSIVE {CLOCK}, renewed AS (
    UPDATE edda_workers w SET expires_at = (SELECT now FROM clock) + $4::bigint WHERE w.id = $2 AND NOT w.dead
    RETURNING w.id
), {_PRIORITIES} {_LOOK}, EXISTS (SELECT 1 FROM renewed) AS alive FROM clock
"""


def _beat(row: Row) -> Beat:
    return Beat(
        alive=row["alive"],
        now_us=row["now"],
        foreign_expiry_us=row["foreign_expiry"],
        next_deadline_us=row["next_deadline"],
        runnable=row["runnable"],
        outbox=row["outbox"],
        next_available_us=row["next_available"],
        unmarked=row["unmarked"],
    )


async def poll(link: Link, offset_us: int, app: str) -> Beat:
    """One statement; ``foreign_expiry_us`` is that of any worker."""
    return _beat(one(await link.fetch(POLL, offset_us, "", app)))


class PostgreSQLHeart:
    """A connection of the lease thread's own, made at the first beat and again after it was lost."""

    def __init__(self, connect: Callable[[], Awaitable[Link]], offset_us: Callable[[], int]) -> None:
        self._connect = connect
        self._offset_us = offset_us
        self._link: Link | None = None

    async def beat(self, worker: str, app: str, lease_us: int) -> Beat:
        try:
            if self._link is None or self._link.is_lost:
                self._link = await self._connect()
            return _beat(one(await self._link.fetch(BEAT, self._offset_us(), worker, app, lease_us)))
        except BaseException as error:
            # Whatever it was, the next beat starts with a fresh connection.
            await self.close()
            translated = translate(error)
            if translated is error:
                raise
            raise translated from error

    async def close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None


__all__ = ["PostgreSQLHeart", "poll"]
