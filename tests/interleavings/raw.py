"""The database by another way than a store: to look at rows, to hold locks, to see who waits for one."""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from tests.support.databases import Database

_WAITING = {
    "postgresql": (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ),
    "mysql": (
        "SELECT COUNT(DISTINCT w.requesting_thread_id) FROM performance_schema.data_lock_waits w "
        "JOIN performance_schema.threads t ON t.thread_id = w.requesting_thread_id "
        "WHERE t.processlist_db = DATABASE()"
    ),
}
_PG_DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
_PG_OTHERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


class Raw:
    """One database, through connections of its driver that no store knows of."""

    def __init__(self, database: Database) -> None:
        self.kind = database.kind
        options: dict[str, Any] = {} if self.kind == "sqlite" else {"isolation_level": "READ COMMITTED"}
        self._engine = create_async_engine(database.driver_url, poolclass=NullPool, **options)
        if self.kind == "sqlite":
            sa.event.listen(self._engine.sync_engine, "connect", _no_implicit_begin)
            sa.event.listen(self._engine.sync_engine, "begin", _begin_immediate)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A transaction on a connection of its own; committed at the end of the block."""
        async with self._engine.begin() as connection:
            yield connection

    async def rows(self, statement: sa.Executable | str) -> Sequence[sa.Row[Any]]:
        """What a query finds now."""
        async with self.transaction() as connection:
            return (await connection.execute(_statement(statement))).all()

    async def scalar(self, statement: sa.Executable | str) -> Any:
        """The first column of the first row."""
        found = await self.rows(statement)
        return found[0][0] if found else None

    async def execute(self, statement: sa.Executable | str) -> None:
        """One statement, committed."""
        async with self.transaction() as connection:
            await connection.execute(_statement(statement))

    async def count(self, table: sa.Table) -> int:
        """How many rows a table has."""
        return int(await self.scalar(sa.select(sa.func.count()).select_from(table)))

    async def lock_waits(self) -> int:
        """How many connections to this database wait for a lock now. SQLite does not tell."""
        if self.kind in _WAITING:
            return int(await self.scalar(_WAITING[self.kind]))
        # MariaDB. Not information_schema.innodb_trx: it shows a copy that is not renewed while somebody keeps asking.
        async with self.transaction() as connection:
            status = (
                (await connection.exec_driver_sql("SHOW ENGINE INNODB STATUS")).mappings().one()["Status"]
            )
            mine = await connection.exec_driver_sql(
                "SELECT id FROM information_schema.processlist WHERE db = DATABASE()"
            )
            ids = {int(row[0]) for row in mine}
        waiting = 0
        for transaction in str(status).split("---TRANSACTION")[1:]:
            thread = re.search(r"thread id (\d+)", transaction)
            if "LOCK WAIT" in transaction and thread is not None and int(thread[1]) in ids:
                waiting += 1
        return waiting

    async def survive(self, connection: AsyncConnection) -> None:
        """Make this transaction the one that goes on after a deadlock; to be called before it locks anything.

        PostgreSQL refuses whoever notices first, InnoDB whoever has written less.
        """
        if self.kind == "postgresql":
            await connection.execute(sa.text("SET LOCAL deadlock_timeout = '60s'"))
            return
        await self.execute("CREATE TABLE ballast (n INTEGER)")
        rows = ", ".join(f"({number})" for number in range(2_000))
        await connection.execute(sa.text(f"INSERT INTO ballast VALUES {rows}"))

    async def other_connections(self) -> int:
        """How many connections to this PostgreSQL database there are besides the one that asks."""
        return int(await self.scalar(_PG_OTHERS))

    async def deadlocks(self) -> int:
        """How many deadlocks this PostgreSQL database has had; a connection reports its own when it ends."""
        return int(await self.scalar(_PG_DEADLOCKS))


def _statement(statement: sa.Executable | str) -> sa.Executable:
    return sa.text(statement) if isinstance(statement, str) else statement


def _no_implicit_begin(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout = 10000")


def _begin_immediate(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
