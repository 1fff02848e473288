"""Stopping a store in the middle of its transaction, at a statement: by a trigger that waits for a row the test holds.

The store does not know, and what it runs is what it runs in production: whatever it has locked and written before that
statement stays locked and uncommitted until the barrier opens.

SQLite has one writer: a transaction there cannot be in the middle while another one writes. What would be stopped is
run to its end instead, so that a test's two parties follow one another in the same order.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import sqlalchemy as sa

from tests.interleavings.raw import Raw
from tests.support.eventually import eventually

T = TypeVar("T")


class Barrier:
    """Of one database; ``raw`` is how the test holds it."""

    def __init__(self, raw: Raw) -> None:
        self._raw = raw
        self._triggers = 0

    @property
    def stops(self) -> bool:
        """False on SQLite: see above."""
        return self._raw.kind != "sqlite"

    @asynccontextmanager
    async def at(
        self, table: sa.Table, operation: str, when: str = "", *, at_commit: bool = False
    ) -> AsyncIterator[None]:
        """Inside the block, whoever does this to a row waits; at its end all go on.

        Args:
            table: whose rows.
            operation: INSERT, UPDATE or DELETE.
            when: only for rows of which this is true, e.g. ``NEW.owner = 'b'``.
            at_commit: not at the statement, but in the COMMIT (PostgreSQL only).
        """
        if not self.stops:
            yield
            return
        await self._build(table, operation, when, at_commit=at_commit)
        async with self._raw.transaction() as connection:
            await connection.execute(sa.text("SELECT id FROM barrier FOR UPDATE"))
            yield

    async def stopped(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start it; returns when it waits at the barrier (on SQLite: when it is done)."""
        if not self.stops:
            task = asyncio.create_task(work)
            await asyncio.wait([task])
            return task
        task = await self.waiting(work)
        assert not task.done(), f"it never came to the barrier: {task}"
        return task

    async def waiting(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start it; returns when it waits for a lock, or is done."""
        before = await self._raw.lock_waits() if self.stops else 0
        task = asyncio.create_task(work)

        async def settled() -> bool:
            return task.done() or await self._raw.lock_waits() > before

        if self.stops:
            await eventually(settled)
        else:
            await asyncio.sleep(0)  # it has begun
        return task

    async def _build(self, table: sa.Table, operation: str, when: str, *, at_commit: bool) -> None:
        first = self._triggers == 0
        self._triggers += 1
        name = f"barrier_{self._triggers}"
        async with self._raw.transaction() as connection:
            if first:
                await connection.execute(sa.text("CREATE TABLE barrier (id INTEGER PRIMARY KEY)"))
                await connection.execute(sa.text("INSERT INTO barrier VALUES (1)"))
        async with self._raw.transaction() as connection:
            if self._raw.kind == "postgresql":
                row = "OLD" if operation == "DELETE" else "NEW"
                await connection.exec_driver_sql(
                    f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS "
                    f"'BEGIN PERFORM id FROM barrier FOR SHARE; RETURN {row}; END'"
                )
                condition = f"WHEN ({when})" if when else ""
                head = f"TRIGGER {name} BEFORE {operation} ON {table.name}"
                if at_commit:
                    head = f"CONSTRAINT TRIGGER {name} AFTER {operation} ON {table.name} INITIALLY DEFERRED"
                await connection.exec_driver_sql(
                    f"CREATE {head} FOR EACH ROW {condition} EXECUTE FUNCTION {name}()"
                )
            else:
                await connection.exec_driver_sql(
                    f"CREATE TRIGGER {name} BEFORE {operation} ON {table.name} FOR EACH ROW "
                    f"IF {when or 'TRUE'} THEN SELECT id INTO @barrier FROM barrier LOCK IN SHARE MODE; END IF"
                )
