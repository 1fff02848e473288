"""Migrations: any number of processes at once, beside the user's own tables, interrupted anywhere, printed."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from edda.errors import ConfigurationError, SchemaError
from edda.storage.connect import open_store
from edda.storage.core.store import CoreStore
from edda.storage.migrations import check_schema, include_object, migration_sql
from edda.storage.migrations.run import VERSION_TABLE
from edda.storage.schema import metadata
from tests.storage import given
from tests.support.databases import Database
from tests.support.processes import spawn

pytestmark = pytest.mark.empty_database

OpenUrl = Callable[[str], Awaitable[CoreStore]]


async def on(database: Database, work: Callable[[sa.Connection], Any]) -> Any:
    """Run it on a plain connection, committed."""
    engine = create_async_engine(database.driver_url, poolclass=NullPool)
    async with engine.begin() as connection:
        outcome = await connection.run_sync(work)
    await engine.dispose()
    return outcome


async def execute(database: Database, *statements: str) -> list[Any]:
    def run(c: sa.Connection) -> list[Any]:
        results = [c.execute(sa.text(statement)) for statement in statements]
        return list(results[-1].all()) if results[-1].returns_rows else []

    found: list[Any] = await on(database, run)
    return found


async def run_script(database: Database, script: str) -> None:
    """As the database's own command-line client would."""
    engine = create_async_engine(database.driver_url, poolclass=NullPool)
    async with engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        if database.kind == "sqlite":
            await driver.executescript(script)
        elif database.kind == "postgresql":
            await driver.execute(script)
        else:
            cursor = await driver.cursor()
            await cursor.execute(script)
            while await cursor.nextset():
                pass
            await driver.commit()
    await engine.dispose()


def described(c: sa.Connection) -> dict[str, Any]:
    """All of Edda's tables, as the database tells them."""
    inspector = sa.inspect(c)
    return {
        table: {
            "columns": {
                column["name"]: (str(column["type"]), column["nullable"], column["default"])
                for column in inspector.get_columns(table)
            },
            "key": inspector.get_pk_constraint(table)["constrained_columns"],
            "indexes": sorted(
                (str(index["name"]), tuple(index["column_names"]), bool(index["unique"]))
                for index in inspector.get_indexes(table)
            ),
            "unique": sorted(
                (str(one["name"]), tuple(one["column_names"]))
                for one in inspector.get_unique_constraints(table)
            ),
        }
        for table in inspector.get_table_names()
        if table.startswith("edda_")
    }


async def works(url: str, *, migrate: bool = False) -> None:
    """A store on this database does what stores do."""
    store = open_store(url)
    await store.open()
    if migrate:
        await store.migrate()
    await store.register_worker(given.WORKER, given.APP, given.HOUR)
    await given.parked(store, "order", given.event_wait(1, "a"))
    await given.accepted(store, given.event("e", "a"))
    assert await given.claimed(store) == ["order"]
    await store.close()


async def test_ten_processes_that_start_at_once_on_an_empty_database_all_come_up(database: Database) -> None:
    with spawn("tests.storage.programs:migrate_ten_times_at_once", database.url) as process:
        assert (await process.line(r"^exits (.*)$", timeout=50))[1] == str([0] * 10)
    await on(database, check_schema)
    await works(database.url)


async def test_the_check_of_ten_processes_sees_one_that_fails(database: Database) -> None:
    """So that the test above cannot pass whatever happens."""
    await execute(database, f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL)")
    await execute(database, f"INSERT INTO {VERSION_TABLE} VALUES ('9999')")
    with spawn("tests.storage.programs:migrate_ten_times_at_once", database.url) as process:
        assert (await process.line(r"^exits (.*)$", timeout=50))[1] == str([1] * 10)


async def test_the_users_own_tables_and_migrations_are_left_alone(database: Database) -> None:
    await execute(
        database,
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, what VARCHAR(20))",
        "INSERT INTO orders VALUES (1, 'books')",
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)",
        "INSERT INTO alembic_version VALUES ('abc123')",
    )
    store = open_store(database.url)
    await store.open()
    await store.migrate()
    await store.migrate()
    await store.close()
    assert await execute(database, "SELECT * FROM orders") == [(1, "books")]
    assert await execute(database, "SELECT * FROM alembic_version") == [("abc123",)]
    tables = await on(database, lambda c: set(sa.inspect(c).get_table_names()))
    assert {table for table in tables if not table.startswith("edda_")} == {"orders", "alembic_version"}
    await works(database.url)


async def test_the_printed_sql_is_complete(
    database: Database, tmp_path_factory: pytest.TempPathFactory
) -> None:
    await run_script(database, migration_sql(database.url))
    await on(database, check_schema)
    printed = await on(database, described)
    await execute(database, *(f"DROP TABLE {table}" for table in printed))
    store = open_store(database.url)
    await store.open()
    await store.migrate()
    await store.close()
    assert await on(database, described) == printed
    await works(database.url)


async def test_a_database_made_by_the_printed_sql_works(database: Database) -> None:
    await run_script(database, migration_sql(database.url))
    await works(database.url)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("postgres://u:hunter2@h/d", "postgresql"),
        ("postgresql+asyncpg://u:hunter2@h/d", "postgresql"),
        ("mariadb://u:hunter2@h/d", "mysql"),
        ("mysql+aiomysql://u:hunter2@h/d", "mysql"),
        ("sqlite://", "sqlite"),
    ],
)
def test_sql_is_printed_for_every_way_to_write_a_url(url: str, kind: str) -> None:
    text = migration_sql(url)
    assert text == migration_sql(f"{kind}://")
    assert "edda_instances" in text
    assert "hunter2" not in text


def test_sql_for_an_unknown_database_is_refused_without_its_password() -> None:
    for url in ("oracle://u:hunter2@h/d", "memory:", "hunter2"):
        with pytest.raises(ConfigurationError) as refused:
            migration_sql(url)
        assert "hunter2" not in str(refused.value)


async def test_the_migrations_make_what_the_tables_say(database: Database) -> None:
    store = open_store(database.url)
    await store.open()
    await store.migrate()
    await store.close()

    def differences(c: sa.Connection) -> list[Any]:
        def is_of(one: Any, _name: str, kind: str, *_: Any) -> bool:
            # Alembic does not ask which databases an index is for.
            return kind != "index" or one._ddl_if is None or c.dialect.name in one._ddl_if.dialect

        options = {"compare_type": True, "version_table": VERSION_TABLE, "include_object": is_of}
        return list(compare_metadata(MigrationContext.configure(c, opts=options), metadata))

    assert await on(database, differences) == []
    await execute(database, "ALTER TABLE edda_instances DROP COLUMN carried")
    assert len(await on(database, differences)) == 1, "the comparison sees what differs"


async def test_the_users_autogenerate_does_not_see_our_tables(database: Database) -> None:
    store = open_store(database.url)
    await store.open()
    await store.migrate()
    await store.close()
    theirs = sa.MetaData()
    sa.Table("orders", theirs, sa.Column("id", sa.Integer, primary_key=True))

    def proposed(c: sa.Connection, **options: Any) -> list[Any]:
        context = MigrationContext.configure(c, opts=options)
        return [(change[0], change[1].name) for change in compare_metadata(context, theirs)]

    with_it = await on(database, lambda c: proposed(c, include_object=include_object))
    assert with_it == [("add_table", "orders")]
    without = await on(database, proposed)
    assert ("remove_table", "edda_instances") in without


async def test_a_migration_killed_anywhere_is_run_again_to_its_end(database: Database) -> None:
    with spawn("tests.storage.programs:migrate_and_be_killed", database.url) as process:
        exits = (await process.line(r"^exits \[(.*)\]$", timeout=50))[1].split(", ")
    assert set(exits[:-1]) == {"-9"}
    assert len(exits) > 5
    assert exits[-1] == "0"
    await on(database, check_schema)
    killed = await on(database, described)
    await works(database.url)
    await execute(database, *(f"DROP TABLE {table}" for table in killed))
    store = open_store(database.url)
    await store.open()
    await store.migrate()
    await store.close()
    assert await on(database, described) == killed


async def test_a_database_of_a_newer_version_is_refused_and_left_alone(database: Database) -> None:
    store = open_store(database.url)
    await store.open()
    await store.migrate()
    await execute(database, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    before = await on(database, described)
    with pytest.raises(SchemaError, match=r"'9999'.*Nothing was changed.*Upgrade Edda"):
        await store.migrate()
    with pytest.raises(SchemaError, match="'9999'"):
        await on(database, check_schema)
    await store.close()
    assert await on(database, described) == before
    assert await execute(database, f"SELECT * FROM {VERSION_TABLE}") == [("9999",)]


async def test_a_database_without_a_schema_says_what_to_do(database: Database) -> None:
    with pytest.raises(SchemaError, match="edda migrate"):
        await on(database, check_schema)


@pytest.mark.parametrize("database", ["mysql", "mariadb"], indirect=True)
async def test_a_database_with_the_longest_name_there_is_can_be_migrated(database: Database) -> None:
    name = f"{database.url.rsplit('/', 1)[1]}_".ljust(64, "x")
    await execute(database, f"CREATE DATABASE {name}")
    try:
        await works(database.url.rsplit("/", 1)[0] + f"/{name}", migrate=True)
    finally:
        await execute(database, f"DROP DATABASE {name}")
