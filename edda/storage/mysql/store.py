"""``MySQLStore``: which transaction runs on which connection, and what happens when one fails.

Three kinds of connections. Hot transactions take one of a pool of our own. Cold ones (``core``) take one of a small
SQLAlchemy pool, apart from the users', so that no number of open user sessions can stop the housekeeping. Users'
sessions have no idle limit of ours until their last statements, when rows of Edda's get locked.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from edda.errors import ConfigurationError, StorageUnavailableError
from edda.storage.core.store import CoreStore, Transaction, TransientError
from edda.storage.core.traits import MySQLTraits
from edda.storage.mysql import accept, claim, flush, heart, signal
from edda.storage.mysql.connection import MIN_WAIT_TIMEOUT, Address, Link, Pool, session_settings
from edda.storage.mysql.errors import Meaning, meaning, translate
from edda.storage.mysql.statements import CLOCK, Statement
from edda.storage.rows import (
    AcceptBatch,
    AcceptResult,
    Beat,
    ClaimedInstance,
    FlushResult,
    LoadedInstance,
    Turn,
    TurnResult,
)

log = logging.getLogger("edda.storage")

T = TypeVar("T")

#: Seconds that a statement waits for a row lock before its whole transaction is run again.
LOCK_TIMEOUT = 5

_TRIES = 12

# Users keep their sql_mode, but nothing may be cut silently, and the driver escapes bytes with backslashes.
_USERS_SETTINGS = (
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; SET SESSION sql_mode = "
    "REPLACE(CONCAT_WS(',', NULLIF(@@sql_mode, ''), 'STRICT_TRANS_TABLES'), 'NO_BACKSLASH_ESCAPES,', '')"
)


class MySQLStore(CoreStore):
    """One database on MySQL 8 or 9, or on MariaDB from 10.6."""

    dialect = "mysql"

    def __init__(
        self,
        url: sa.URL,
        *,
        pool_size: int = 5,
        max_overflow: int = 10,
        pool_timeout: float = 30,
        pool_recycle: float = 3600,
    ) -> None:
        super().__init__(url, MySQLTraits())
        self._address = Address(url)
        self._pool_size, self._max_overflow = pool_size, max_overflow
        self._pool_timeout, self._pool_recycle = pool_timeout, pool_recycle
        self._pool: Pool | None = None
        self._users: AsyncEngine | None = None
        self._cold: AsyncEngine | None = None

    # ---------------------------------------------------------------- life

    async def open(self, lease_us: int = 30_000_000) -> None:
        if lease_us != self.lease_us:
            await self.close()  # what is connected already has the other lease's timeouts
        self.lease_us = lease_us
        self._hot()
        await self._transact(self._check_durability)

    async def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        engines, self._users, self._cold = (self._users, self._cold), None, None
        for engine in engines:
            if engine is not None:
                await engine.dispose()

    async def ping(self) -> None:
        await self._transact(lambda link: link.run(Statement("SELECT 1")))

    async def now(self) -> int:
        answers = await self._transact(
            lambda link: link.run(Statement(f"SELECT {CLOCK} + %s", (self.clock_offset_us,)))
        )
        return int(answers[0].rows[0][0])

    def engine(self) -> AsyncEngine:
        if self._users is None:
            self._users = self._make_engine(
                _USERS_SETTINGS,
                pool_size=self._pool_size,
                max_overflow=self._max_overflow,
                pool_timeout=self._pool_timeout,
                pool_recycle=int(self._pool_recycle),
            )
            sa.event.listen(self._users.sync_engine, "checkin", _forget_idle_limit)
        return self._users

    async def _check_durability(self, link: Link) -> None:
        names = ("innodb_flush_log_at_trx_commit", "sync_binlog", "log_bin", "binlog_format")
        (result,) = await link.run(Statement("SHOW VARIABLES WHERE Variable_name IN (%s, %s, %s, %s)", names))
        settings = {str(name): str(value) for name, value in result.rows}
        if settings.get("innodb_flush_log_at_trx_commit") != "1":
            log.warning(
                "innodb_flush_log_at_trx_commit is %s: a power failure or a crash of the server loses commits that "
                "were acknowledged; set it to 1",
                settings.get("innodb_flush_log_at_trx_commit"),
            )
        if settings.get("log_bin") != "ON":
            return
        if settings.get("binlog_format") == "STATEMENT":
            raise ConfigurationError(
                "binlog_format is STATEMENT, with which the server refuses writes under READ COMMITTED. Nothing was "
                "written; set it to ROW (or MIXED)."
            )
        if settings.get("sync_binlog") != "1":
            log.warning(
                "sync_binlog is %s: after a power failure replicas may lack what was committed; set it to 1",
                settings.get("sync_binlog"),
            )

    # ---------------------------------------------------------------- hot transactions

    async def accept(self, batch: AcceptBatch) -> AcceptResult:
        return await self._transact(lambda link: accept.accept(link, self.clock_offset_us, batch))

    async def mark_due(self, hashes: Sequence[bytes], limit: int = 1000) -> tuple[frozenset[str], bool]:
        if not hashes:
            return frozenset(), False
        return await self._transact(lambda link: signal.mark_due(link, self.clock_offset_us, hashes, limit))

    async def fire_timers(self, limit: int = 1000) -> tuple[frozenset[str], int]:
        return await self._transact(lambda link: signal.fire_timers(link, self.clock_offset_us, limit))

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
        return await self._transact(
            lambda link: claim.claim(link, self.clock_offset_us, app, workflows, worker, limit, versions)
        )

    async def owned(self, worker: str) -> list[ClaimedInstance]:
        return await self._transact(lambda link: claim.owned(link, worker))

    async def load(self, instance_ids: Sequence[str], *, history: bool = True) -> dict[str, LoadedInstance]:
        if not instance_ids:
            return {}
        return await self._transact(lambda link: claim.load(link, instance_ids, history=history))

    async def flush(self, turns: Sequence[Turn]) -> FlushResult:
        if not turns:
            return FlushResult(await self.now(), ())
        self.flushes += 1
        try:
            return await self._transact(
                lambda link: flush.flush(link, self.clock_offset_us, turns, careful=False)
            )
        except flush.RepeatedFlushError:
            return await self._transact(
                lambda link: flush.flush(link, self.clock_offset_us, turns, careful=True)
            )

    async def poll(self, app: str) -> Beat:
        return await self._transact(lambda link: heart.poll(link, self.clock_offset_us, app))

    def heart(self) -> heart.MySQLHeart:
        return heart.MySQLHeart(self._connect, lambda: self.clock_offset_us)

    async def _transact(self, work: Callable[[Link], Awaitable[T]]) -> T:
        """Run one transaction, again if it was refused for others' sake."""
        for attempt in range(_TRIES):
            try:
                async with self._hot().link() as link:
                    try:
                        return await work(link)
                    except Exception as error:  # noqa: BLE001, classified below
                        # After 1205 InnoDB keeps the rest of the transaction open; a COMMIT would make half durable.
                        if not await link.rollback():
                            link.close()
                        outcome = error
            except Exception as error:  # noqa: BLE001, no connection could be had
                outcome = error
            what = meaning(outcome)
            if what is Meaning.UNAVAILABLE and self._pool is not None:
                self._pool.clear()  # the idle connections are probably lost, too
            if what is not Meaning.AGAIN:
                raise translate(outcome) from outcome
            log.debug("transaction_again", extra={"attempt": attempt, "error": str(outcome)})
            await asyncio.sleep(random.random() * 0.01 * 2 ** min(attempt, 6))  # noqa: S311, jitter
        raise StorageUnavailableError(
            f"MySQL refused a transaction {_TRIES} times for others' sake (deadlock, lock wait timeout). Nothing was "
            "written; it may be sent again."
        )

    # ---------------------------------------------------------------- cold transactions and users' sessions

    async def apply_in_session(self, connection: AsyncConnection, turn: Turn) -> TurnResult:
        # From here to the commit, rows of Edda's are locked: a process that is stopped now must not keep them.
        await connection.run_sync(self._limit_idle_time)
        return await super().apply_in_session(connection, turn)

    def _limit_idle_time(self, connection: sa.Connection) -> None:
        connection.info["edda_idle_limit"] = True
        connection.exec_driver_sql(f"SET SESSION wait_timeout = {self._wait_timeout}")

    async def _once(self, work: Transaction[T], *, write: bool) -> T:
        del write
        if self._cold is None:
            # Pinged before use, because idle connections do not live long.
            self._cold = self._make_engine(self._settings, pool_size=1, max_overflow=self._pool_size)
            sa.event.listen(self._cold.sync_engine, "before_cursor_execute", self._count)
        async with self._cold.begin() as connection:
            return await connection.run_sync(work)

    def _classify(self, error: BaseException) -> BaseException | None:
        driver = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        if isinstance(error, sa.exc.TimeoutError):
            return StorageUnavailableError(f"no database connection became free: {error}")
        if not isinstance(driver, Exception):
            return None
        if meaning(driver) is Meaning.AGAIN:
            return TransientError(str(driver))
        translated = translate(driver)
        return None if translated is driver else translated

    # ---------------------------------------------------------------- connections

    @property
    def _wait_timeout(self) -> int:
        return max(MIN_WAIT_TIMEOUT, self.lease_us // 2_000_000)

    @property
    def _settings(self) -> str:
        return session_settings(self._wait_timeout, LOCK_TIMEOUT)

    async def _connect(self) -> Link:
        return await Link.open(self._address, self._settings, self._sent)

    def _hot(self) -> Pool:
        if self._pool is None:
            self._pool = Pool(self._connect, self._pool_size, self._pool_timeout, self._wait_timeout * 0.75)
        return self._pool

    def _make_engine(self, settings: str, **pool: Any) -> AsyncEngine:
        arguments: dict[str, Any] = {"init_command": settings}
        if (tls := self._address.tls) is not None:
            arguments["ssl"] = tls
        return create_async_engine(
            self._address.for_sqlalchemy, connect_args=arguments, pool_pre_ping=True, **pool
        )

    def _sent(self, statements: int) -> None:
        self.statements += statements

    def _count(self, *_: object) -> None:
        self._sent(1)


def _forget_idle_limit(connection: Any, record: Any) -> None:
    """The next user of this connection may think for as long as the server's default allows."""
    if connection is not None and record.info.pop("edda_idle_limit", False):
        cursor = connection.cursor()
        cursor.execute("SET SESSION wait_timeout = DEFAULT")
        cursor.close()
