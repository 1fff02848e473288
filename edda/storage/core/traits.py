"""Where databases differ, as objects: locks, clocks, inserts that leave existing rows alone. No test of a dialect's name elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

Rows = Sequence[dict[str, Any]]

#: Any number, the same for all who share a database: the accept lock among PostgreSQL's advisory locks.
ACCEPT_LOCK = 0x45444441_0001


class Traits(Protocol):
    """One database's ways."""

    name: str
    skips_locked: bool
    holds_writer: bool

    def now(self, connection: sa.Connection) -> int:
        """The database's clock in microseconds."""
        ...

    def lock_accept(self, connection: sa.Connection, *, exclusive: bool) -> None:
        """Take the accept lock until the transaction ends."""
        ...

    def insert_ignoring(self, connection: sa.Connection, table: sa.Table, rows: Rows) -> None:
        """Insert the rows whose keys are free; leave the others as they are."""
        ...

    def lock_rows(self, select: sa.Select[Any], *, skip_locked: bool = False) -> sa.Select[Any]:
        """The select with row locks."""
        ...


class PostgreSQLTraits:
    """READ COMMITTED, advisory locks, ON CONFLICT."""

    name = "postgresql"
    skips_locked = True
    holds_writer = False
    _now = sa.text("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")

    def now(self, connection: sa.Connection) -> int:
        """One statement."""
        return int(connection.execute(self._now).scalar_one())

    def lock_accept(self, connection: sa.Connection, *, exclusive: bool) -> None:
        """Advisory locks write nothing."""
        function = sa.func.pg_advisory_xact_lock if exclusive else sa.func.pg_advisory_xact_lock_shared
        connection.execute(sa.select(function(sa.cast(ACCEPT_LOCK, sa.BigInteger))))

    def insert_ignoring(self, connection: sa.Connection, table: sa.Table, rows: Rows) -> None:
        """Any unique key counts."""
        if rows:
            connection.execute(postgresql.insert(table).on_conflict_do_nothing(), list(rows))

    def lock_rows(self, select: sa.Select[Any], *, skip_locked: bool = False) -> sa.Select[Any]:
        """FOR NO KEY UPDATE: foreign keys of users' tables may still point at the row."""
        return select.with_for_update(key_share=True, skip_locked=skip_locked)


class MySQLTraits:
    """MySQL and MariaDB: one locked row, ON DUPLICATE KEY."""

    name = "mysql"
    skips_locked = True
    holds_writer = False
    _now = sa.text("SELECT CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED)")

    def now(self, connection: sa.Connection) -> int:
        """One statement."""
        return int(connection.execute(self._now).scalar_one())

    def lock_accept(self, connection: sa.Connection, *, exclusive: bool) -> None:
        """LOCK IN SHARE MODE, because MariaDB has no FOR SHARE."""
        mode = "FOR UPDATE" if exclusive else "LOCK IN SHARE MODE"
        connection.execute(sa.text(f"SELECT id FROM edda_accept WHERE id = 1 {mode}"))

    def insert_ignoring(self, connection: sa.Connection, table: sa.Table, rows: Rows) -> None:
        """Never INSERT IGNORE: it cuts what is too long and says nothing."""
        if rows:
            key = next(iter(table.primary_key.columns))
            statement = mysql.insert(table)
            connection.execute(statement.on_duplicate_key_update({key.name: key}), list(rows))

    def lock_rows(self, select: sa.Select[Any], *, skip_locked: bool = False) -> sa.Select[Any]:
        """FOR UPDATE."""
        return select.with_for_update(skip_locked=skip_locked)


class SQLiteTraits:
    """BEGIN IMMEDIATE has locked everything already."""

    name = "sqlite"
    skips_locked = False
    holds_writer = True

    def now(self, connection: sa.Connection) -> int:  # noqa: ARG002
        """The machine's clock is the database's."""
        return time.time_ns() // 1000

    def lock_accept(self, connection: sa.Connection, *, exclusive: bool) -> None:
        """The write lock is the accept lock."""

    def insert_ignoring(self, connection: sa.Connection, table: sa.Table, rows: Rows) -> None:
        """Any unique key counts."""
        if rows:
            connection.execute(sqlite.insert(table).on_conflict_do_nothing(), list(rows))

    def lock_rows(self, select: sa.Select[Any], *, skip_locked: bool = False) -> sa.Select[Any]:  # noqa: ARG002
        """Nothing to add."""
        return select


_BY_NAME: dict[str, Traits] = {
    "postgresql": PostgreSQLTraits(),
    "mysql": MySQLTraits(),
    "mariadb": MySQLTraits(),
    "sqlite": SQLiteTraits(),
}


def traits_of(connection: sa.Connection) -> Traits:
    """The ways of the database that a user's own connection is on."""
    return _BY_NAME[connection.dialect.name]
