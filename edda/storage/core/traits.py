"""Where databases differ, as objects: locks, clocks, inserts that leave existing rows alone.

Nothing else in ``core`` asks for a dialect's name.
"""

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

    def now(self, connection: sa.Connection) -> int:
        """The database's clock in microseconds."""
        ...

    def lock_accept(self, connection: sa.Connection) -> None:
        """Take the accept lock, exclusive, until the transaction ends."""
        ...

    def insert_ignoring(self, connection: sa.Connection, table: sa.Table, rows: Rows) -> None:
        """Insert the rows whose keys are free; leave the others as they are."""
        ...

    def lock_rows(self, select: sa.Select[Any]) -> sa.Select[Any]:
        """The select (by primary key) with row locks."""
        ...

    def lower(self, text: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
        """Text without the difference of upper and lower case; to be compared as it is."""
        ...


class PostgreSQLTraits:
    """READ COMMITTED, advisory locks, ON CONFLICT."""

    name = "postgresql"
    _now = sa.text("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")

    def now(self, connection: sa.Connection) -> int:
        """One statement."""
        return int(connection.execute(self._now).scalar_one())

    def lock_accept(self, connection: sa.Connection) -> None:
        """Advisory locks write nothing."""
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.cast(ACCEPT_LOCK, sa.BigInteger))))

    def insert_ignoring(self, connection: sa.Connection, table: sa.Table, rows: Rows) -> None:
        """Any unique key counts."""
        if rows:
            connection.execute(postgresql.insert(table).on_conflict_do_nothing(), list(rows))

    def lock_rows(self, select: sa.Select[Any]) -> sa.Select[Any]:
        """FOR NO KEY UPDATE: foreign keys of users' tables may still point at the row."""
        return select.with_for_update(key_share=True)

    def lower(self, text: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
        """By the database's own collation: ours is "C", which knows only the 26 letters."""
        return sa.func.lower(sa.collate(sa.cast(text, sa.Text), "default"))


class MySQLTraits:
    """MySQL and MariaDB: one locked row, ON DUPLICATE KEY."""

    name = "mysql"
    # UTC, so that no session's time zone folds an hour twice.
    _now = sa.text("SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))")

    def now(self, connection: sa.Connection) -> int:
        """One statement."""
        return int(connection.execute(self._now).scalar_one())

    def lock_accept(self, connection: sa.Connection) -> None:
        """The row is the lock."""
        connection.execute(sa.text("SELECT id FROM edda_accept WHERE id = 1 FOR UPDATE"))

    def insert_ignoring(self, connection: sa.Connection, table: sa.Table, rows: Rows) -> None:
        """Never INSERT IGNORE: it cuts what is too long and says nothing."""
        if rows:
            key = next(iter(table.primary_key.columns))
            statement = mysql.insert(table)
            connection.execute(statement.on_duplicate_key_update({key.name: key}), list(rows))

    def lock_rows(self, select: sa.Select[Any]) -> sa.Select[Any]:
        """FOR UPDATE, through the primary key: on a small table all rows would be read, and so locked."""
        for table in select.get_final_froms():
            select = select.with_hint(table, "FORCE INDEX (PRIMARY)", "mysql")
        return select.with_for_update()

    def lower(self, text: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
        """As text, which keys are not, and then byte by byte, lest accents go with the case."""
        return sa.collate(sa.func.lower(sa.cast(text, sa.CHAR())), "utf8mb4_bin")


class SQLiteTraits:
    """BEGIN IMMEDIATE has locked everything already."""

    name = "sqlite"

    def now(self, connection: sa.Connection) -> int:  # noqa: ARG002
        """The machine's clock is the database's."""
        return time.time_ns() // 1000

    def lock_accept(self, connection: sa.Connection) -> None:
        """The write lock is the accept lock."""

    def insert_ignoring(self, connection: sa.Connection, table: sa.Table, rows: Rows) -> None:
        """Any unique key counts."""
        if rows:
            connection.execute(sqlite.insert(table).on_conflict_do_nothing(), list(rows))

    def lock_rows(self, select: sa.Select[Any]) -> sa.Select[Any]:
        """Nothing to add."""
        return select

    def lower(self, text: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
        """By a function of ours; SQLite's own knows only the 26 letters."""
        return sa.func.edda_lower(text, type_=sa.Text)


_BY_NAME: dict[str, Traits] = {
    "postgresql": PostgreSQLTraits(),
    "mysql": MySQLTraits(),
    "mariadb": MySQLTraits(),
    "sqlite": SQLiteTraits(),
}


def traits_of(connection: sa.Connection) -> Traits:
    """The ways of the database that a user's own connection is on."""
    return _BY_NAME[connection.dialect.name]
