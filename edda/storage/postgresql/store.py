"""``PostgreSQLStore``: which transaction runs on which connection, and what happens when one fails.

Three kinds of connections. Hot transactions take one of a pool of our own. Cold ones (``core``) take one of a small
SQLAlchemy pool, apart from the users', so that no number of open user sessions can stop the housekeeping. Users'
sessions have no limits of ours until their last statements, when rows of Edda's get locked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from edda.errors import ConfigurationError, EddaError, StorageUnavailableError
from edda.storage.contract import HintListener
from edda.storage.core.store import CoreStore, Transaction, TransientError, one_migration
from edda.storage.core.traits import PostgreSQLTraits
from edda.storage.migrations import migrate_connection
from edda.storage.postgresql import accept, claim, flush, heart, hints, signal
from edda.storage.postgresql.connection import (
    Address,
    Link,
    Pool,
    Row,
    Settings,
    hot_settings,
    one,
    session_settings,
    set_locally,
)
from edda.storage.postgresql.errors import Meaning, is_lock_timeout, meaning, translate
from edda.storage.postgresql.frozen import USERS_SESSION, end_frozen_sessions
from edda.storage.postgresql.rows import INSERT_INSTANCES, NOW, all_instance_columns
from edda.storage.rows import (
    AcceptBatch,
    AcceptResult,
    Beat,
    ClaimedInstance,
    FlushResult,
    LoadedInstance,
    NewInstance,
    Turn,
    TurnResult,
)

log = logging.getLogger("edda.storage")

T = TypeVar("T")

_TRIES = 12

_OLDEST = 130_000

_CHECK = """
SELECT current_setting('server_version_num')::integer AS version, current_setting('server_encoding') AS encoding,
       current_setting('default_transaction_isolation') AS isolation, current_setting('fsync') AS fsync,
       current_setting('full_page_writes') AS full_page_writes,
       current_setting('synchronous_commit') AS synchronous_commit
"""
_DURABLE = {
    "fsync": {"on"},
    "full_page_writes": {"on"},
    "synchronous_commit": {"on", "remote_apply", "remote_write"},
}


class PostgreSQLStore(CoreStore):
    """One database, and one schema of it (``?options=-csearch_path%3Dname`` or ``?search_path=name``)."""

    dialect = "postgresql"

    def __init__(
        self,
        url: sa.URL,
        *,
        pool_size: int = 5,
        max_overflow: int = 10,
        pool_timeout: float = 30,
        pool_recycle: float = 3600,
    ) -> None:
        super().__init__(url, PostgreSQLTraits())
        self._address = Address.of(url)
        # A listener needs a session of its own, and a pooler has none to give.
        self.has_hints = not self._address.pooled
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
        try:
            found = await self._fetch_one(_CHECK)
        except StorageUnavailableError as error:
            if isinstance(
                error.__cause__,
                asyncpg.InvalidCatalogNameError | asyncpg.InvalidAuthorizationSpecificationError,
            ):
                raise ConfigurationError(f"PostgreSQL refuses the connection: {error.__cause__}") from error
            raise
        self._check(found)

    def _check(self, found: Row) -> None:
        if found["version"] < _OLDEST:
            raise ConfigurationError(
                f"this server is PostgreSQL {found['version'] // 10_000}; Edda needs 13 or newer. Nothing was written."
            )
        if found["encoding"] != "UTF8":
            raise ConfigurationError(
                f"this database's encoding is {found['encoding']}, which cannot hold every text. Nothing was written; "
                "create the database with ENCODING 'UTF8'."
            )
        for name, durable in _DURABLE.items():
            if found[name] not in durable:
                log.warning(
                    "%s is %s: a crash or a power failure loses commits that were acknowledged; set it to on",
                    name,
                    found[name],
                    extra={"setting": name, "value": found[name]},
                )

    async def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        engines, self._users, self._cold = (self._users, self._cold), None, None
        for engine in engines:
            if engine is not None:
                await engine.dispose()

    async def migrate(self) -> None:
        def migrate(c: sa.Connection) -> None:
            # Building an index takes as long as it takes.
            c.exec_driver_sql(
                set_locally({"statement_timeout": "0", "idle_in_transaction_session_timeout": "0"})
            )
            migrate_connection(c, self.traits.name)

        async with one_migration():
            await self._run(migrate)

    async def ping(self) -> None:
        await self._fetch_one("SELECT 1")

    async def now(self) -> int:
        return int((await self._fetch_one(NOW, self.clock_offset_us))[0])

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
        self.flushes += 1
        return await self._transact(lambda link: flush.flush(link, self.clock_offset_us, turns))

    async def insert_instances(self, new: Sequence[NewInstance]) -> list[bool]:
        if not new:
            return []
        # In id order; of two with one id the first is the one that can be inserted.
        ordered = sorted(new, key=lambda instance: instance.id)
        columns = [[True] * len(ordered), *all_instance_columns(ordered).values()]
        rows = await self._transact(lambda link: link.fetch(INSERT_INSTANCES, self.clock_offset_us, *columns))
        inserted = {row[0] for row in rows}
        results = []
        for instance in new:
            results.append(instance.id in inserted)
            inserted.discard(instance.id)
        return results

    async def poll(self, app: str) -> Beat:
        return await self._transact(lambda link: heart.poll(link, self.clock_offset_us, app))

    def heart(self) -> heart.PostgreSQLHeart:
        return heart.PostgreSQLHeart(self._connect, lambda: self.clock_offset_us)

    async def notify(self, hints_: Sequence[str]) -> None:
        if self.has_hints and hints_:
            await self._transact(lambda link: hints.notify(link, hints_))

    @contextlib.asynccontextmanager
    async def listen(self, listener: HintListener) -> AsyncIterator[None]:
        if not self.has_hints:
            yield
            return
        async with hints.listen(lambda: self._address.connect(self._address.settings, None), listener):
            yield

    async def _fetch_one(self, statement: str, *values: Any) -> Row:
        return one(await self._transact(lambda link: link.fetch(statement, *values)))

    async def _transact(self, work: Callable[[Link], Awaitable[T]]) -> T:
        """Run one transaction, again if it was refused for others' sake."""
        for attempt in range(_TRIES):
            try:
                async with self._hot().link() as link:
                    try:
                        return await work(link)
                    except Exception as error:  # noqa: BLE001, classified below
                        if meaning(error) is Meaning.UNAVAILABLE or not await link.rollback():
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
            if is_lock_timeout(outcome):
                await self._end_frozen_sessions()
            await asyncio.sleep(random.random() * 0.01 * 2 ** min(attempt, 6))  # noqa: S311, jitter
        raise StorageUnavailableError(
            f"PostgreSQL refused a transaction {_TRIES} times for others' sake (deadlock, lock timeout). Nothing was "
            "written; it may be sent again."
        )

    # ---------------------------------------------------------------- cold transactions and users' sessions

    def engine(self) -> AsyncEngine:
        if self._users is None:
            self._users = self._make_engine(
                {"application_name": USERS_SESSION, **self._address.settings},
                pool_size=self._pool_size,
                max_overflow=self._max_overflow,
                pool_timeout=self._pool_timeout,
                pool_recycle=int(self._pool_recycle),
            )
        return self._users

    async def apply_in_session(self, connection: AsyncConnection, turn: Turn) -> TurnResult:
        # From here to the commit, rows of Edda's are locked: a process that is stopped now must not keep them.
        limits = {
            name: value
            for name, value in session_settings(self.lease_us).items()
            if name in {"idle_in_transaction_session_timeout", "lock_timeout"}
        }
        await connection.exec_driver_sql(set_locally(limits))
        return await super().apply_in_session(connection, turn)

    async def _once(self, work: Transaction[T], *, write: bool) -> T:
        del write
        if self._cold is None:
            settings = {**self._address.settings, **session_settings(self.lease_us)}
            self._cold = self._make_engine(settings, pool_size=1, max_overflow=self._pool_size)
            for event in ("before_cursor_execute", "begin", "commit", "rollback"):
                sa.event.listen(self._cold.sync_engine, event, self._count)
        try:
            async with self._cold.begin() as connection:
                return await connection.run_sync(work)
        except sa.exc.DBAPIError as error:
            if is_lock_timeout(_driver_error(error)):
                await self._end_frozen_sessions()
            raise

    async def _end_frozen_sessions(self) -> None:
        ended = await self._transact(lambda link: end_frozen_sessions(link, self.lease_us // 2))
        if ended:
            log.warning("frozen_sessions_ended", extra={"count": ended})

    def _classify(self, error: BaseException) -> BaseException | None:
        if isinstance(error, sa.exc.TimeoutError):
            return StorageUnavailableError(f"no database connection became free: {error}")
        driver = _driver_error(error)
        if meaning(driver) is Meaning.AGAIN:
            return TransientError(str(driver))
        translated = translate(driver)
        return translated if isinstance(translated, EddaError) else None

    # ---------------------------------------------------------------- connections

    async def _connect(self) -> Link:
        return await Link.open(self._address, hot_settings(self.lease_us), self._sent)

    def _hot(self) -> Pool:
        if self._pool is None:
            self._pool = Pool(self._connect, self._pool_size, self._pool_timeout, self._pool_recycle)
        return self._pool

    def _make_engine(self, settings: Settings, **pool: Any) -> AsyncEngine:
        async def connect(*_: object, **__: object) -> asyncpg.Connection[Row]:
            return await self._address.connect(settings, None)

        arguments: dict[str, Any] = {"async_creator_fn": connect}
        if self._address.pooled:
            # Unnamed, as a name may be taken in the session that the pooler hands out next.
            arguments |= {"prepared_statement_cache_size": 0, "prepared_statement_name_func": str}
        engine = create_async_engine(
            self.url.set(drivername="postgresql+asyncpg", query={}),
            connect_args=arguments,
            isolation_level="READ COMMITTED",
            **pool,
        )
        sa.event.listen(engine.sync_engine, "checkout", _refuse_closed)
        sa.event.listen(engine.sync_engine, "handle_error", _disconnect)
        if self._address.pooled and (statement := set_locally(settings)):
            sa.event.listen(engine.sync_engine, "begin", lambda c: c.exec_driver_sql(statement))
        return engine

    def _sent(self, statements: int) -> None:
        self.statements += statements

    def _count(self, *_: object) -> None:
        self._sent(1)


def _driver_error(error: BaseException) -> BaseException:
    """The error of asyncpg's that SQLAlchemy has wrapped."""
    if isinstance(error, sa.exc.DBAPIError) and error.orig is not None:
        error = error.orig
    return error.__cause__ or error


def _refuse_closed(connection: Any, *_: object) -> None:
    """Take another connection than one that the server has closed meanwhile."""
    if connection.driver_connection.is_closed():
        raise sa.exc.DisconnectionError


def _disconnect(context: sa.engine.ExceptionContext) -> None:
    """Part with a server that has become read-only: the next connection finds the new one."""
    if isinstance(_driver_error(context.original_exception), asyncpg.ReadOnlySQLTransactionError):
        context.is_disconnect = True
