"""What a store refuses to work on, and what it warns of."""

import asyncio
import logging
import re
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from edda.app import EddaApp
from edda.errors import ConfigurationError, StorageUnavailableError
from edda.storage.connect import open_store
from edda.storage.contract import Storage
from edda.storage.sqlite import connection
from edda.storage.sqlite.store import SQLiteStore
from tests.storage import given
from tests.storage.conftest import OpenStore
from tests.support.databases import Database


async def refused(url: str) -> str:
    """What a store says that may not be opened; and an app says it, too, in place of waiting for ever."""
    store = open_store(url)
    with pytest.raises(ConfigurationError) as failure:
        await store.open()
    await store.close()
    app = EddaApp("shop", url)
    with pytest.raises(ConfigurationError):
        await app.initialize()
    await app.shutdown()
    return str(failure.value)


async def test_a_directory_that_does_not_exist_is_said_to_be_missing_not_waited_for(tmp_path: Path) -> None:
    message = await refused(f"sqlite:///{tmp_path / 'missing' / 'orders.db'}")
    assert f"mkdir -p '{tmp_path / 'missing'}'" in message


async def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is not a directory" in await refused(f"sqlite:///{tmp_path / 'file' / 'orders.db'}")


async def test_a_directory_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "orders.db").mkdir()
    assert "it is a directory" in await refused(f"sqlite:///{tmp_path / 'orders.db'}")


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "orders.db").write_text("customer,amount\n" * 1_000)
    assert "not a SQLite database" in await refused(f"sqlite:///{tmp_path / 'orders.db'}")
    assert (tmp_path / "orders.db").read_text() == "customer,amount\n" * 1_000


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="needs a directory that not even root may write to"
)
async def test_a_directory_that_cannot_be_written_to_is_refused() -> None:
    message = await refused("sqlite:////proc/orders.db")
    assert re.search(r"'/proc' is not writable|no file can be created in '/proc'", message)


async def test_a_file_that_is_opened_read_only_is_refused(server: Database) -> None:
    path = sa.make_url(server.url).database
    assert "read-only" in await refused(f"sqlite:///file:{path}?mode=ro&uri=true")


async def test_a_sqlite_without_json_is_refused_at_once(
    server: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_json(action: int, _: object, function: str | None, *_context: object) -> int:
        missing = action == sqlite3.SQLITE_FUNCTION and function == "json_group_array"
        return sqlite3.SQLITE_DENY if missing else sqlite3.SQLITE_OK

    def connect(url: sa.URL) -> sqlite3.Connection:
        connected = plain(url)
        connected.set_authorizer(without_json)
        return connected

    plain = connection.connect
    monkeypatch.setattr(connection, "connect", connect)
    assert "JSON functions" in await refused(server.url)


async def test_a_sqlite_that_is_too_old_is_refused_at_once(
    server: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 32, 3))
    assert "3.33.0 or newer" in await refused(server.url)


async def test_a_refused_store_can_be_opened_when_the_mistake_is_mended(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'later' / 'orders.db'}")
    with pytest.raises(ConfigurationError):
        await store.open()
    (tmp_path / "later").mkdir()
    await store.open()
    await store.ping()
    await store.close()


async def test_every_connection_of_a_store_is_durable_and_waits_for_others(sqlite_store: SQLiteStore) -> None:
    def settings(c: sqlite3.Connection) -> tuple[object, ...]:
        return tuple(c.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous"))

    assert await sqlite_store._writer.run(settings) == ("wal", 2)
    assert await sqlite_store._reader.run(settings) == ("wal", 2)
    async with sqlite_store.engine().connect() as session:
        read = [await session.scalar(sa.text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous")]
        assert read == ["wal", 2]
        assert await session.scalar(sa.text("PRAGMA busy_timeout")) == 10_000
    heart = sqlite_store.heart()
    await heart.beat(given.WORKER, given.APP, given.HOUR)
    assert heart._connection is not None
    assert settings(heart._connection) == ("wal", 2)
    await heart.close()


async def test_a_store_that_is_not_durable_warns_of_the_setting(
    server: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lax = tuple(setting.replace("FULL", "NORMAL") for setting in connection.SETTINGS)
    assert lax != connection.SETTINGS
    monkeypatch.setattr(connection, "SETTINGS", lax)
    store = open_store(server.url)
    with caplog.at_level(logging.WARNING, "edda.storage"):
        await store.open()
    await store.close()
    assert "synchronous is 1" in caplog.text


@pytest.mark.empty_database
async def test_a_file_system_that_refuses_wal_is_warned_of(
    server: Database, caplog: pytest.LogCaptureFixture
) -> None:
    path = sa.make_url(server.url).database
    # Its locks are files, and it has no shared memory, like many a network's file system.
    store = open_store(f"sqlite:///file:{path}?vfs=unix-dotfile&uri=true")
    with caplog.at_level(logging.WARNING, "edda.storage"):
        await store.open()
    await store.close()
    assert "journal_mode is delete" in caplog.text


async def test_a_durable_store_warns_of_nothing(server: Database, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(server.url)
    with caplog.at_level(logging.WARNING, "edda.storage"):
        await store.open()
    await store.close()
    assert caplog.records == []


@pytest.mark.empty_database
@pytest.mark.empty_database
async def test_ten_stores_open_and_migrate_one_new_file_at_once(another_store: OpenStore) -> None:
    async def migrated() -> Storage:
        store = await another_store()
        await store.migrate()
        return store

    stores = await asyncio.gather(*(migrated() for _ in range(10)))
    for number, store in enumerate(stores):
        await given.started(store, f"order-{number}")
    assert (await stores[0].counts())["instances"] == 10


async def test_two_new_files_are_migrated_at_once_by_one_process(tmp_path: Path) -> None:
    stores = [open_store(f"sqlite:///{tmp_path / name}.db") for name in "abc"]
    await asyncio.gather(*(store.migrate() for store in stores))
    for store in stores:
        await given.started(store, "order")
        await store.close()


@pytest.mark.empty_database
async def test_the_first_cold_transaction_of_a_connection_is_one(server: Database) -> None:
    store = open_store(server.url)
    assert isinstance(store, SQLiteStore)
    with pytest.raises(ZeroDivisionError):
        await store._run(lambda c: [c.exec_driver_sql("CREATE TABLE half (a)"), 1 / 0])
    assert await store._run(lambda c: sa.inspect(c).get_table_names(), write=False) == []
    await store.close()


async def test_a_closed_store_refuses_work_and_says_so(sqlite_store: SQLiteStore) -> None:
    await sqlite_store.close()
    with pytest.raises(StorageUnavailableError, match=re.escape("open()")):
        await sqlite_store.flush([given.start("order")])
    with pytest.raises(StorageUnavailableError, match=re.escape("open()")):
        await sqlite_store.counts()


async def test_a_database_in_memory_leaves_no_file_behind() -> None:
    store = open_store("sqlite://")
    assert isinstance(store, SQLiteStore)
    await store.migrate()
    await given.started(store, "order")
    path = store._temporary
    assert path is not None
    assert path.exists()
    await store.close()
    assert not list(path.parent.glob(f"{path.name}*"))
