"""What a failure means: nothing was written, or nobody knows; no transaction stays open, and the store goes on."""

import asyncio
import resource
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from edda.errors import SchemaError, StorageDataError, StorageUnavailableError
from edda.storage.connect import open_store
from edda.storage.rows import Applied, Record, RelayOutcome
from edda.storage.sqlite import store as store_module
from edda.storage.sqlite import write_lock
from edda.storage.sqlite.store import SQLiteStore
from tests.storage import given
from tests.storage.sqlite.conftest import raw_connection
from tests.support.databases import Database
from tests.support.eventually import eventually

MEGABYTE = b"x" * 1_000_000


async def set_up(store: SQLiteStore, statement: str) -> None:
    """On the writer's connection, until it is made anew."""
    await store._writer.run(lambda c: c.execute(statement).fetchall())


def log_of(server: Database) -> Path:
    return Path(f"{sa.make_url(server.url).database}-wal")


async def writes(store: SQLiteStore) -> None:
    """It does: no transaction of an earlier failure is open."""
    assert await given.applied(store, given.start(f"order-{store.statements}")) == [Applied.APPLIED]


# ---------------------------------------------------------------------------------------------- the file


async def test_a_full_disk_is_unavailable_and_what_was_refused_can_be_sent_again(
    sqlite_store: SQLiteStore,
) -> None:
    await given.started(sqlite_store, "order")
    ((pages,),) = await sqlite_store._writer.run(lambda c: c.execute("PRAGMA page_count").fetchall())
    await set_up(sqlite_store, f"PRAGMA max_page_count = {pages + 1}")
    step = given.turn("order", records=[given.record(1, MEGABYTE)], outbox=[given.message("e")])
    with pytest.raises(StorageUnavailableError, match="free space"):
        await sqlite_store.flush([step])
    assert await given.recorded(sqlite_store, "order") == []
    # The limit went with the connection, which nobody trusts after such an error.
    assert await given.applied(sqlite_store, step) == [Applied.APPLIED]
    assert await given.outgoing(sqlite_store) == ["e"]


async def test_a_file_that_became_read_only_is_unavailable_with_a_remedy(sqlite_store: SQLiteStore) -> None:
    await set_up(sqlite_store, "PRAGMA query_only = 1")
    with pytest.raises(StorageUnavailableError, match="make the file and its directory writable"):
        await sqlite_store.flush([given.start("order")])
    await writes(sqlite_store)


async def test_a_write_that_the_system_refuses_is_unavailable_and_the_store_recovers(
    sqlite_store: SQLiteStore, server: Database
) -> None:
    await given.started(sqlite_store, "order")
    log_size = log_of(server).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log_size + 8_192, hard))
    try:
        with pytest.raises(StorageUnavailableError, match="look at its disk"):
            await sqlite_store.flush([given.turn("order", records=[given.record(1, MEGABYTE)])])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert await given.recorded(sqlite_store, "order") == []
    await writes(sqlite_store)


async def test_a_cold_transaction_that_fails_leaves_no_transaction_open(sqlite_store: SQLiteStore) -> None:
    await sqlite_store.outbox_take("default", "relay", given.HOUR, 10, 1_000)
    await set_up(sqlite_store, "PRAGMA query_only = 1")
    with pytest.raises(StorageUnavailableError):
        await sqlite_store.outbox_settle("default", "relay", RelayOutcome(dead=((1, "gone"),)))
    await writes(sqlite_store)


@pytest.mark.empty_database
async def test_a_database_without_the_schema_says_what_to_do(server: Database) -> None:
    store = open_store(server.url)
    await store.open()
    for transaction in (
        store.claim(given.APP, ["order"], given.WORKER, 1),
        store.flush([given.start("order")]),
        store.owned(given.WORKER),
        store.counts(),
    ):
        with pytest.raises(SchemaError, match="edda migrate"):
            await transaction
    await store.close()


# ---------------------------------------------------------------------------------------------- values


async def test_a_number_that_is_too_large_is_refused_and_nothing_is_written(
    sqlite_store: SQLiteStore,
) -> None:
    with pytest.raises(StorageDataError):
        await sqlite_store.flush([given.start("good"), given.start("bad", priority=2**70)])
    assert await sqlite_store.get_instance("good") is None
    with pytest.raises(StorageDataError):
        await sqlite_store.insert_instances([given.instance("good"), given.instance("bad", priority=2**70)])
    assert await sqlite_store.get_instance("good") is None
    await writes(sqlite_store)


async def test_a_value_that_is_too_large_is_refused_and_nothing_is_written(sqlite_store: SQLiteStore) -> None:
    await given.started(sqlite_store, "good", "bad")
    await sqlite_store._writer.run(lambda c: c.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000))
    turns = [given.turn("good", 1), given.turn("bad", records=[given.record(1, MEGABYTE)])]
    with pytest.raises(StorageDataError):
        await sqlite_store.flush(turns)
    assert await given.recorded(sqlite_store, "good") == []
    await writes(sqlite_store)


async def test_a_value_of_a_type_that_cannot_be_stored_is_refused(sqlite_store: SQLiteStore) -> None:
    await given.started(sqlite_store, "order")
    odd = Record(1, 1, "activity", "charge", {"no": "bytes"})  # type: ignore[arg-type]
    with pytest.raises(StorageDataError):
        await sqlite_store.flush([given.turn("order", records=[odd])])
    await writes(sqlite_store)


async def test_a_missing_value_is_refused_and_not_taken_for_a_repeated_record(
    sqlite_store: SQLiteStore,
) -> None:
    await given.started(sqlite_store, "order")
    empty = Record(1, 1, "activity", "charge", None)  # type: ignore[arg-type]
    flushes = sqlite_store.statements
    with pytest.raises(StorageDataError, match="NOT NULL"):
        await sqlite_store.flush([given.turn("order", records=[empty])])
    assert sqlite_store.statements == flushes + 1
    await writes(sqlite_store)


async def test_a_bug_in_a_transaction_rolls_it_back(sqlite_store: SQLiteStore) -> None:
    def broken(c: sqlite3.Connection, _now: int) -> None:
        c.execute("UPDATE edda_accept SET last_seq = 99")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await sqlite_store._write(broken)
    result = await given.accepted(sqlite_store, given.event("e"))
    assert result.results[0].seq == 1


# ---------------------------------------------------------------------------------------------- the write lock


async def test_a_write_waits_for_another_process_and_reads_do_not(
    sqlite_store: SQLiteStore, raw: sqlite3.Connection
) -> None:
    await given.started(sqlite_store, "order")
    raw.execute("BEGIN IMMEDIATE")
    flushing = asyncio.create_task(sqlite_store.flush([given.turn("order", 1)]))
    await eventually(lambda: sqlite_store._lock.is_contended)
    assert await given.recorded(sqlite_store, "order") == []
    assert [one.id for one in await sqlite_store.owned(given.WORKER)] == ["order"]
    assert (await sqlite_store.load(["order"]))["order"].signals == 0
    assert not flushing.done()
    raw.execute("COMMIT")
    assert (await flushing).results[0].applied is Applied.APPLIED


async def test_a_lock_that_is_held_for_too_long_is_unavailable_and_nothing_was_written(
    sqlite_store: SQLiteStore, raw: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_lock, "BUSY_TIMEOUT", 0.05)
    monkeypatch.setattr(store_module, "BUSY_TIMEOUT", 0.05)
    raw.execute("BEGIN IMMEDIATE")
    heart = sqlite_store.heart()
    for transaction in (
        sqlite_store.flush([given.start("order")]),
        sqlite_store.insert_instances([given.instance("order")]),
        heart.beat(given.WORKER, given.APP, given.HOUR),
    ):
        with pytest.raises(StorageUnavailableError, match=r"Nothing was written.*may be sent again"):
            await transaction
    raw.execute("COMMIT")
    assert await sqlite_store.get_instance("order") is None
    assert (await heart.beat(given.WORKER, given.APP, given.HOUR)).alive
    await heart.close()
    await writes(sqlite_store)


async def test_a_busy_file_is_said_to_be_transient(
    sqlite_store: SQLiteStore, raw: sqlite3.Connection, server: Database
) -> None:
    raw.execute("BEGIN IMMEDIATE")
    with raw_connection(server) as other, pytest.raises(sqlite3.OperationalError) as busy:
        other.execute("BEGIN IMMEDIATE")
    raw.execute("COMMIT")
    assert sqlite_store.is_transient(busy.value)
    assert sqlite_store.is_transient(sa.exc.OperationalError("BEGIN", None, busy.value))
    assert not sqlite_store.is_transient(ZeroDivisionError())
    assert not sqlite_store.is_transient(sqlite3.IntegrityError())
