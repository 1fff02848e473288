"""Users' sessions beside the store's writer: one at a time, and neither starves."""

import asyncio
import sqlite3

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from edda.storage.rows import Applied
from edda.storage.sqlite.store import SQLiteStore
from tests.storage import given
from tests.support.eventually import eventually


async def test_a_session_holds_the_writer_from_its_first_statement_to_its_end(
    sqlite_store: SQLiteStore, raw: sqlite3.Connection
) -> None:
    async with AsyncSession(sqlite_store.engine()) as session:
        raw.execute("BEGIN IMMEDIATE")
        raw.execute("COMMIT")
        # Reading first, as nearly every activity does: a transaction that became a writer only then would be refused.
        await session.execute(sa.text("SELECT count(*) FROM edda_instances"))
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            raw.execute("BEGIN IMMEDIATE")
        await session.commit()
        raw.execute("BEGIN IMMEDIATE")
        raw.execute("COMMIT")


async def test_a_flush_waits_for_an_open_session_and_the_event_loop_goes_on(
    sqlite_store: SQLiteStore,
) -> None:
    await given.started(sqlite_store, "order")
    async with AsyncSession(sqlite_store.engine()) as session:
        connection = await session.connection()
        flushing = asyncio.create_task(sqlite_store.flush([given.turn("order", 2)]))
        await eventually(lambda: sqlite_store._lock.is_contended)
        applied = await sqlite_store.apply_in_session(connection, given.turn("order", 1))
        assert applied.applied is Applied.APPLIED
        assert await given.recorded(sqlite_store, "order") == []
        assert not flushing.done()
        await session.commit()
    assert (await flushing).results[0].applied is Applied.APPLIED
    assert await given.recorded(sqlite_store, "order") == [1, 2]


async def test_a_session_gets_the_writer_beside_a_process_that_flushes_without_a_pause(
    sqlite_store: SQLiteStore,
) -> None:
    await given.started(sqlite_store, "order")
    busy = True

    async def flush_on() -> int:
        number = 0
        while busy:
            number += 1
            await sqlite_store.flush([given.turn("order", number)])
        return number

    flushing = asyncio.create_task(flush_on())
    async with sqlite_store.engine().begin() as connection:
        await connection.execute(sa.text("CREATE TABLE theirs (a INTEGER)"))
    for _ in range(20):
        async with AsyncSession(sqlite_store.engine()) as session, session.begin():
            await session.execute(sa.text("INSERT INTO theirs SELECT count(*) FROM theirs"))
    busy = False
    written = await flushing
    assert await given.recorded(sqlite_store, "order") == list(range(1, written + 1))
    async with sqlite_store.engine().connect() as connection:
        assert (await connection.execute(sa.text("SELECT max(a) FROM theirs"))).scalar() == 19


async def test_many_sessions_at_once_take_turns(sqlite_store: SQLiteStore) -> None:
    async with sqlite_store.engine().begin() as connection:
        await connection.execute(sa.text("CREATE TABLE theirs (a INTEGER)"))

    async def add(number: int) -> None:
        async with AsyncSession(sqlite_store.engine()) as session, session.begin():
            await session.execute(sa.text("SELECT count(*) FROM theirs"))
            await session.execute(sa.text(f"INSERT INTO theirs VALUES ({number})"))

    await asyncio.gather(*(add(number) for number in range(12)))
    async with sqlite_store.engine().connect() as connection:
        assert (await connection.execute(sa.text("SELECT count(*) FROM theirs"))).scalar() == 12
