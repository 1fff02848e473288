"""What the server does to a session of ours: every connection comes back, and what was lost is told for what it was."""

from __future__ import annotations

import logging

import asyncpg
import pytest
import sqlalchemy as sa

from edda.app import EddaApp
from edda.context import WorkflowContext
from edda.errors import ConfigurationError, SchemaError, StorageUnavailableError
from edda.storage.connect import open_store
from edda.storage.postgresql.errors import Meaning, meaning
from edda.storage.postgresql.store import PostgreSQLStore
from edda.storage.rows import Applied
from edda.workflow import workflow
from tests.storage import given
from tests.storage.postgresql.raw import Raw
from tests.support.databases import Database
from tests.support.eventually import eventually


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (asyncpg.DeadlockDetectedError(), Meaning.AGAIN),
        (asyncpg.SerializationError(), Meaning.AGAIN),
        (asyncpg.LockNotAvailableError(), Meaning.AGAIN),
        (asyncpg.AdminShutdownError(), Meaning.UNAVAILABLE),
        (asyncpg.QueryCanceledError(), Meaning.UNAVAILABLE),
        (asyncpg.ReadOnlySQLTransactionError(), Meaning.UNAVAILABLE),
        (asyncpg.IdleInTransactionSessionTimeoutError(), Meaning.UNAVAILABLE),
        (asyncpg.TooManyConnectionsError(), Meaning.UNAVAILABLE),
        (asyncpg.DiskFullError(), Meaning.UNAVAILABLE),
        (asyncpg.InvalidPasswordError(), Meaning.UNAVAILABLE),
        (asyncpg.ConnectionDoesNotExistError(), Meaning.UNAVAILABLE),
        (ConnectionResetError(), Meaning.UNAVAILABLE),
        (TimeoutError(), Meaning.UNAVAILABLE),
        (asyncpg.StringDataRightTruncationError(), Meaning.DATA),
        (asyncpg.CharacterNotInRepertoireError(), Meaning.DATA),
        (asyncpg.NotNullViolationError(), Meaning.DATA),
        (asyncpg.ProgramLimitExceededError(), Meaning.DATA),
        (asyncpg.UndefinedTableError(), Meaning.SCHEMA),
        (asyncpg.UndefinedFunctionError(), Meaning.SCHEMA),
        (asyncpg.PostgresSyntaxError(), None),
        (KeyError("a bug"), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_each_error_means_one_thing(error: BaseException, what: Meaning | None) -> None:
    assert meaning(error) is what


async def test_sessions_that_the_server_ends_while_idle_are_noticed_by_nobody(
    store: PostgreSQLStore, raw: Raw
) -> None:
    await store.flush([given.start("order")])
    await store.flush([given.turn("order", 1)])
    heart = store.heart()
    assert (await heart.beat(given.WORKER, given.APP, given.HOUR)).alive
    assert await raw.end() >= 1

    async def works() -> bool:
        return (await store.flush([given.turn("order", 2)])).results[0].applied is Applied.APPLIED

    try:
        assert await works()
    except StorageUnavailableError:  # sent before the end was heard of: unknown, and sent again
        assert await works()

    async def beats() -> bool:
        try:
            return (await heart.beat(given.WORKER, given.APP, given.HOUR)).alive
        except StorageUnavailableError:
            return False

    await eventually(beats)
    await heart.close()
    assert [record.seq for record in await store.get_history("order")] == [1, 2]


async def test_a_listener_whose_connection_is_ended_listens_again_and_looks_at_everything(
    store: PostgreSQLStore, raw: Raw, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []
    async with store.listen(heard.append):
        await eventually(lambda: "run:*" in heard)
        heard.clear()
        assert await raw.end() >= 1
        await eventually(lambda: {"run:*", "outbox"} <= set(heard))  # what came while nobody listened
        heard.clear()

        async def told() -> bool:
            try:
                await store.notify(["run:shop"])
            except StorageUnavailableError:
                return False
            return "run:shop" in heard

        await eventually(told)
    assert "hints_lost" in caplog.text


async def test_a_server_that_may_lose_commits_is_complained_about_by_name(
    server: Database, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(f"{server.url}?options=-csynchronous_commit%3Doff")
    with caplog.at_level(logging.WARNING):
        await store.open()
    await store.close()
    assert [
        record.getMessage() for record in caplog.records if "synchronous_commit" in record.getMessage()
    ] == [
        "synchronous_commit is off: a crash or a power failure loses commits that were acknowledged; set it to on"
    ]


async def test_a_database_that_is_not_there_and_a_schema_that_is_missing_are_told(server: Database) -> None:
    absent = open_store(sa.make_url(server.url).set(database="nobody").render_as_string(hide_password=False))
    with pytest.raises(ConfigurationError, match="nobody"):
        await absent.open()
    await absent.close()


@pytest.mark.empty_database
async def test_tables_may_live_in_a_schema_of_their_own(server: Database) -> None:
    connection = await asyncpg.connect(server.url)
    await connection.execute("CREATE SCHEMA durable")

    @workflow(name="counting")
    async def counting(ctx: WorkflowContext, n: int) -> int:
        return n + 1

    url = f"{server.url}?options=-csearch_path%3Ddurable"
    async with EddaApp("shop", url, workflows=[counting]) as app:
        handle = await app.submit(counting, n=1)
        assert await handle.result(timeout=20) == 2
    places = "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename LIKE 'edda%'"
    assert [row[0] for row in await connection.fetch(places)] == ["durable"]
    functions = (
        "SELECT DISTINCT n.nspname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace "
        "WHERE proname LIKE 'edda%'"
    )
    assert [row[0] for row in await connection.fetch(functions)] == ["durable"]
    await connection.close()


@pytest.mark.empty_database
async def test_a_database_without_tables_says_edda_migrate(server: Database) -> None:
    store = open_store(server.url)
    await store.open()
    with pytest.raises(SchemaError, match="edda migrate"):
        await store.flush([given.start("order")])
    await store.close()
