"""The housekeeping statements: renew this worker's row, and look around for what waits to be done."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

from edda.errors import StorageUnavailableError
from edda.storage.mysql.connection import Link, Row
from edda.storage.mysql.errors import Meaning, meaning, translate
from edda.storage.mysql.statements import CLOCK, Statement
from edda.storage.rows import LEFT_AFTER_US, Beat

_RUNNABLE = "FROM edda_instances FORCE INDEX (edda_instances_runnable) WHERE state = 'runnable' AND app = %s"
_LOOK = (
    "SELECT @edda_now, "
    "(SELECT dead = 0 FROM edda_workers WHERE id = %s), "
    "(SELECT MIN(expires_at) FROM edda_workers WHERE dead = 0 AND id <> %s), "
    # Not MIN: with a condition on the column itself it would read every deadline there is.
    "(SELECT deadline FROM edda_waits FORCE INDEX (edda_waits_deadline) WHERE due = 0 AND deadline IS NOT NULL "
    "ORDER BY deadline LIMIT 1), "
    f"EXISTS (SELECT 1 {_RUNNABLE} AND available_at <= @edda_now), "
    # Two questions, so that each is one look into the index.
    "EXISTS (SELECT 1 FROM edda_outbox WHERE state = 'pending') "
    "OR EXISTS (SELECT 1 FROM edda_outbox WHERE state = 'retrying' AND available_at <= @edda_now), "
    # Reads the app's runnable instances once: their index is in the order of priorities, for the claim.
    f"(SELECT MIN(available_at) {_RUNNABLE} AND available_at > @edda_now), "
    f"EXISTS (SELECT 1 FROM edda_unmarked WHERE created_at <= @edda_now - {LEFT_AFTER_US})"
)


def _look(worker: str, app: str) -> Statement:
    return Statement(_LOOK, (worker, worker, app, app))


def _beat(row: Row, *, alive: bool) -> Beat:
    now, _, foreign_expiry, next_deadline, runnable, outbox, next_available, unmarked = row
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


def _clock(offset_us: int) -> Statement:
    return Statement(f"SET @edda_now = {CLOCK} + %s", (offset_us,))


async def poll(link: Link, offset_us: int, app: str) -> Beat:
    """One packet; ``foreign_expiry_us`` is that of any worker."""
    answers = await link.run(_clock(offset_us), _look("", app))
    return _beat(answers[-1].rows[0], alive=True)


#: A renewal and a declaration of death may lock the same rows in two orders; one of them is sent again.
_TRIES = 5


class _RefusedError(StorageUnavailableError):
    """For another transaction's sake; nothing was written."""


class MySQLHeart:
    """A connection of the lease thread's own, made at the first beat and again after it was lost."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Link]],
        offset_us: Callable[[], int],
    ) -> None:
        self._connect = connect
        self._offset_us = offset_us
        self._link: Link | None = None

    async def beat(self, worker: str, app: str, lease_us: int) -> Beat:
        for _ in range(_TRIES - 1):
            with contextlib.suppress(_RefusedError):
                return await self._beat(worker, app, lease_us)
        return await self._beat(worker, app, lease_us)

    async def _beat(self, worker: str, app: str, lease_us: int) -> Beat:
        try:
            if self._link is None or self._link.is_lost:
                await self.close()
                self._link = await self._connect()
            answers = await self._link.run(
                _clock(self._offset_us()),
                Statement(
                    "UPDATE edda_workers SET expires_at = @edda_now + %s WHERE id = %s AND dead = 0",
                    (lease_us, worker),
                ),
                _look(worker, app),
            )
        except BaseException as error:
            # Whatever it was, the next beat starts with a fresh connection.
            await self.close()
            if not isinstance(error, Exception):
                raise
            if meaning(error) is Meaning.AGAIN:
                raise _RefusedError(f"MySQL refused a renewal: {error}. Send it again.") from error
            raise translate(error) from error
        row = answers[-1].rows[0]
        # Not by the number of changed rows: a row that already had this expiry does not count as changed.
        return _beat(row, alive=bool(row[1]))

    async def close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None


__all__ = ["MySQLHeart", "poll"]
