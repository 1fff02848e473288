"""The commands do what they say, speak JSON to programs, and their errors say what to do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from edda.app import EddaApp
from edda.context import WorkflowContext
from edda.storage.connect import open_store
from edda.storage.contract import Storage
from edda.storage.rows import Trigger
from edda.storage.schema import outbox
from edda.workflow import workflow
from tests.cli.conftest import EDDA, Run
from tests.gateways.messages import binary
from tests.outbox_relays.given import enqueue, is_empty, row, rows
from tests.outbox_relays.sink import open_sink
from tests.support.databases import Database
from tests.support.eventually import eventually


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Storage]:
    store = open_store(database.url)
    await store.open()
    await store.migrate()
    yield store
    await store.close()


@contextlib.asynccontextmanager
async def running(*arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A command that serves until it is terminated; it must then end well."""
    process = await asyncio.create_subprocess_exec(
        *EDDA, *arguments, stdout=asyncio.subprocess.PIPE, env={**os.environ, **environment}
    )
    try:
        yield process
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()


# ---------------------------------------------------------------------------------------------- migrate


@pytest.mark.empty_database
async def test_migrate_brings_an_empty_database_up_to_date_and_may_be_repeated(
    edda: Run, database: Database
) -> None:
    first = await edda("migrate", "--database-url", database.url)
    assert (first.code, first.out) == (0, "The schema is up to date.\n"), first.err
    again = await edda("migrate", "--json", EDDA_DB_URL=database.url)
    assert (again.code, json.loads(again.out)) == (0, {"migrated": True})


@pytest.mark.empty_database
async def test_the_statements_that_migrate_prints_make_a_schema_that_works(
    edda: Run, database: Database
) -> None:
    ran = await edda("migrate", "--sql", "--json", "--database-url", database.url)
    assert ran.code == 0, ran.err
    assert (await edda("instances", "--database-url", database.url)).code == 1  # printed, not run
    await execute(database, json.loads(ran.out)["sql"])
    async with EddaApp("shop", database.url, workflows=[counting]) as app:
        await app.start(counting, n=1)
    listed = await edda("instances", "--database-url", database.url)
    assert "completed" in listed.out, listed.err


async def execute(database: Database, script: str) -> None:
    """As an administrator would, with the database's own client."""
    if database.kind == "sqlite":
        with contextlib.closing(sqlite3.connect(sa.make_url(database.url).database or "")) as file:
            file.executescript(script)
    elif database.kind == "postgresql":
        session = await asyncpg.connect(database.url)
        await session.execute(script)
        await session.close()
    else:
        engine = create_async_engine(database.driver_url)
        async with engine.connect() as connection:
            for statement in script.split(";\n"):
                if statement.strip():
                    await connection.exec_driver_sql(statement)
            await connection.commit()
        await engine.dispose()


# ---------------------------------------------------------------------------------------------- instances


@workflow(name="counting")
async def counting(ctx: WorkflowContext, n: int) -> bytes:
    return b"\xff"


async def test_instances_are_listed_for_people_and_for_programs(edda: Run, database: Database) -> None:
    async with EddaApp("shop", database.url, workflows=[counting]) as app:
        ids = [await app.start(counting, n=n) for n in range(3)]
    listed = await edda("instances", "--database-url", database.url)
    assert listed.code == 0, listed.err
    assert all(one in listed.out for one in ids)  # whole, also where no terminal is
    assert "completed" in listed.out
    told = json.loads((await edda("instances", "--json", "--database-url", database.url)).out)
    assert [each["instance_id"] for each in told["instances"]] == ids[::-1]
    few = await edda("instances", "--limit", "2", "--database-url", database.url)
    assert "--limit" in few.err
    none = await edda("instances", "--status", "failed", "--database-url", database.url)
    assert (none.code, none.out) == (0, "No instances.\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("instances", "--database-url", "oracle://x/y"), "sqlite:///orders.db"),
        (("instances", "--database-url", "nonsense"), "sqlite:///orders.db"),
        (("instances", "--database-url", "sqlite:///{fresh}"), "edda migrate"),
        (("instances", "--status", "nope", "--database-url", "sqlite:///{migrated}"), "running"),
        (("outbox", "replay", "7", "--database-url", "sqlite:///{migrated}"), "edda outbox dead"),
        (("outbox", "discard", "7", "--database-url", "sqlite:///{migrated}"), "edda outbox dead"),
        (("migrate", "--database-url", "postgresql://user:s3cret@127.0.0.1:9/db"), "127.0.0.1"),
        (("relay", "ftp://x/", "--database-url", "sqlite:///{migrated}"), "https://"),
        (("relay", "http://x/", "--mode", "xml", "--database-url", "sqlite:///{migrated}"), "structured"),
    ],
)
async def test_an_error_says_what_to_do_without_a_traceback_or_a_secret(
    edda: Run, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    migrated = tmp_path / "migrated.db"
    await edda("migrate", "--database-url", f"sqlite:///{migrated}")
    places = {"fresh": str(tmp_path / "fresh.db"), "migrated": str(migrated)}
    ran = await edda(*(argument.format(**places) for argument in arguments))
    assert ran.code == 1, ran.out
    assert told in ran.err
    assert "Traceback" not in ran.err
    assert "s3cret" not in ran.out + ran.err


async def test_without_a_database_the_option_and_the_variable_are_named(edda: Run) -> None:
    ran = await edda("instances", EDDA_DB_URL="")
    assert ran.code != 0
    assert "database-url" in ran.err


# ---------------------------------------------------------------------------------------------- outbox


async def test_dead_rows_are_listed_replayed_and_discarded(
    edda: Run, database: Database, store: Storage
) -> None:
    assert (await edda("outbox", "status", "--database-url", database.url)).out == "The outbox is empty.\n"
    assert (await edda("outbox", "dead", "--database-url", database.url)).out == "No dead rows.\n"
    await enqueue(store, row("a", "k"), row("b", "k"), row("c"))
    async with store.engine().begin() as connection:
        first = outbox.c.event_id.in_(["a", "c"])
        await connection.execute(
            sa.update(outbox).where(first).values(state="dead", reason="HTTP 400: no", attempts=3)
        )
        await connection.execute(sa.update(outbox).where(outbox.c.event_id == "b").values(state="parked"))

    status = await edda("outbox", "status", "--json", "--database-url", database.url)
    assert json.loads(status.out) == {"dead": 2, "parked": 1}
    dead = json.loads((await edda("outbox", "dead", "--json", "--database-url", database.url)).out)
    assert [(each["event_id"], each["reason"], each["attempts"]) for each in dead] == [
        ("a", "HTTP 400: no", 3),
        ("c", "HTTP 400: no", 3),
    ]
    table = await edda("outbox", "dead", "--database-url", database.url)
    assert "HTTP 400: no" in table.out
    assert "edda outbox replay" in table.err

    replayed = await edda("outbox", "replay", str(dead[0]["id"]), "--database-url", database.url)
    assert replayed.code == 0, replayed.err
    discarded = await edda("outbox", "discard", str(dead[1]["id"]), "--json", "--database-url", database.url)
    assert json.loads(discarded.out) == {"row": dead[1]["id"], "done": "discard"}
    assert await rows(store) == {"a": ("retrying", 3), "b": ("parked", 0)}


# ---------------------------------------------------------------------------------------------- gateway, relay


async def test_a_gateway_without_any_code_of_ours_starts_what_the_triggers_say(
    database: Database, store: Storage
) -> None:
    await store.declare_triggers([Trigger("shop", "fulfil", "order.created")])
    arguments = ("gateway", "--port", "0", "--database-url", database.url)
    async with running(*arguments, EDDA_GATEWAY_TOKENS="old new") as process:
        word, port = (await line(process)).split()
        assert word == "listening"
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            headers, body = binary(b"{}", "application/json")
            assert (await http.post("/", headers=headers, content=body)).status_code == 401
            for number, token in enumerate(("old", "new")):
                more = [
                    *headers[:1],
                    (b"ce-id", b"id-%d" % number),
                    *headers[2:],
                    (b"authorization", f"Bearer {token}".encode()),
                ]
                assert (await http.post("/", headers=more, content=body)).status_code == 202
    assert (await store.counts())["instances"] == 2


async def test_a_relay_alone_hears_of_rows_and_sends_them(database: Database, store: Storage) -> None:
    async with open_sink() as sink:
        await enqueue(store, row("before", destination="bank"))
        arguments = ("relay", sink.url, "--destination", "bank", "--database-url", database.url)
        async with running(*arguments, EDDA_RELAY_TOKEN="s3cret") as process:
            assert await line(process) == "relaying"
            await eventually(lambda: sink.ids == ["before"])
            await enqueue(store, row("after", destination="bank"))
            await store.notify(["outbox"])
            await eventually(lambda: is_empty(store), 20)
    assert sink.ids == ["before", "after"]
    assert sink.got[0].headers["authorization"] == "Bearer s3cret"


async def test_positions_are_shown_and_moved(database: Database, store: Storage, edda: Run) -> None:
    await store.seek_source("kafka", "orders", "payments", 3, 17)
    env = {"EDDA_DB_URL": database.url}
    shown = await edda("positions", "show", "orders", "--json", **env)
    assert json.loads(shown.out) == [{"topic": "payments", "partition": 3, "next_offset": 17}]
    assert "payments" in (await edda("positions", "show", "orders", **env)).out
    assert "has read nothing" in (await edda("positions", "show", "nobody", **env)).out

    moved = await edda("positions", "seek", "orders", "payments", "3", "5", **env)
    assert moved.out.strip() == "payments/3 of group 'orders' goes on at 5; it was at 17."
    assert await store.source_positions("kafka", "orders") == {("payments", 3): 5}

    refused = await edda("positions", "seek", "orders", "paymets", "3", "5", **env)
    assert refused.code != 0
    assert "it has read payments/3. Nothing was changed" in " ".join(refused.err.split())
    assert await store.source_positions("kafka", "orders") == {("payments", 3): 5}
    begun = await edda("positions", "seek", "orders", "refunds", "0", "9", "--new", "--json", **env)
    assert json.loads(begun.out) == {"topic": "refunds", "partition": 0, "was": None, "next_offset": 9}
