"""Plans on full tables: a hot transaction costs what it does, and not what the tables hold."""

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa

from edda.storage.postgresql import accept, claim, flush, heart, signal
from edda.storage.postgresql.connection import Link, hot_settings
from edda.storage.postgresql.rows import INSERT_INSTANCES, all_instance_columns
from edda.storage.postgresql.store import PostgreSQLStore
from edda.storage.rows import NewDeadLetter, PositionAdvance
from tests.storage import given, sweeping
from tests.storage.given import APP, HOUR, WORKER
from tests.storage.postgresql.plans import ROWS, Watch, connected, fill, nodes, watched
from tests.support.databases import Database

TURNS = 50

#: Pages that a hot transaction may touch for each of its rows.
PAGES_PER_ROW = 150

Transaction = Callable[[Link, str], Awaitable[object]]


def _names(run: str) -> list[str]:
    return [f"{run}-{number}" for number in range(TURNS)]


async def _start(link: Link, run: str) -> None:
    await flush.flush(link, 0, [given.start(one, records=[given.record(1)]) for one in _names(run)])


async def _step(link: Link, run: str) -> None:
    turns = [
        given.turn(
            one,
            2,
            3,
            outbox=[given.message(one)],
            children=[given.instance(f"child of {one}")],
            waits=[given.timer(4, delay_us=HOUR), given.event_wait(5, one, since_us=ROWS // 2)],
            drop_waits=[9],
            reset_recoveries=True,
        )
        for one in _names(run)
    ]
    await flush.flush(link, 0, turns)
    await flush.flush(link, 0, turns)  # as after an unknown commit


async def _park(link: Link, run: str) -> None:
    turns = [given.park(one, given.event_wait(6, one), given.event_wait(7, "often")) for one in _names(run)]
    await flush.flush(link, 0, turns)


async def _end(link: Link, run: str) -> None:
    await flush.flush(
        link, 0, [given.start(f"ending {one}", records=[given.record(1)]) for one in _names(run)]
    )
    turns = [
        given.end(f"ending {one}", 2, unread=given.unread("many", ROWS - 10, ROWS)) for one in _names(run)
    ]
    await flush.flush(link, 0, turns)
    await flush.flush(link, 0, [given.end(f"ending {one}") for one in _names(run)])


async def _accept(link: Link, run: str) -> None:
    events = [
        given.event(
            f"event of {one}", one, "unknown", starts=(given.instance(f"of event {one}"),), position=0
        )
        for one in _names(run)
    ]
    addressed = [
        given.event(f"to {one}", "often", addressee=f"filled-{50 * at + 50}")
        for at, one in enumerate(_names(run))
    ]
    batch = given.batch(
        run,
        *events,
        *addressed,
        positions=(PositionAdvance("c", "g", run, 0, 0, 1),),
        poison=(NewDeadLetter("o", b"", b"[]", "r"),),
    )
    assert (await accept.accept(link, 0, batch)).results[0].waits == 2
    await accept.accept(link, 0, batch)  # as after an unknown commit


async def _fan_out(link: Link, run: str) -> None:
    batch = given.batch(f"fan {run}", given.event(f"fan {run}", "often"))
    assert (await accept.accept(link, 0, batch)).more_hashes == (given.digest("often"),)
    apps, more = await signal.mark_due(link, 0, [given.digest("often")], 100)
    assert apps
    assert more
    left = "SELECT 1 FROM edda_unmarked WHERE hash = $1"
    assert await link.fetch(left, given.digest("left"))
    assert await signal.mark_due(link, 0, [given.digest("left")], 100) == (frozenset(), False)
    assert not await link.fetch(left, given.digest("left"))


async def _fire(link: Link, run: str) -> None:
    await link.fetch(
        "UPDATE edda_waits SET deadline = 1 WHERE seq = 4 AND instance_id = ANY ($1)", _names(run)
    )
    _, fired = await signal.fire_timers(link, 0, 1000)
    assert fired == TURNS


#: That the process has, beside instances without one.
VERSIONS = [("order", "1"), ("order", "2")]


async def _claim(link: Link, run: str) -> None:
    claimed = await claim.claim(link, 0, APP, ["order"], WORKER, TURNS, VERSIONS)
    assert len(claimed) == TURNS
    await claim.load(link, [*_names(run), *(one.id for one in claimed)], history=True)


async def _look_around(link: Link, run: str) -> None:
    await claim.owned(link, "worker-1")
    await heart.poll(link, 0, APP)
    await link.fetch(heart.BEAT, 0, WORKER, APP, HOUR)


async def _insert(link: Link, run: str) -> None:
    new = [given.instance(f"inserted {one}") for one in _names(run)]
    await link.fetch(INSERT_INSTANCES, 0, [True] * TURNS, *all_instance_columns(new).values())


#: In an order in which each finds what it works on.
TRANSACTIONS = (_start, _step, _park, _end, _accept, _fan_out, _fire, _claim, _look_around, _insert)


async def _run_all(link: Link, watch: Watch, run: str) -> dict[str, int]:
    pages = {}
    for transaction in TRANSACTIONS:
        watch.plans.clear()
        await transaction(link, run)
        assert watch.plans
        assert watch.faults() == [], transaction.__name__
        pages[transaction.__name__] = watch.pages
    return pages


async def _full(url: str, *, analyzed: bool) -> None:
    async with connected(url) as connection:
        await fill(connection)
        if analyzed:
            await connection.execute("ANALYZE")
        await connection.execute(
            "INSERT INTO edda_workers VALUES ($1, $2, 0, 4000000000000000, false)", WORKER, APP
        )


@pytest.fixture(autouse=True)
def few_first_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    # For a thousand of a hundred thousand rows a planner may well prefer to read them all.
    monkeypatch.setattr(accept, "FIRST_WAITS", 2 * TURNS)


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
async def test_no_hot_statement_reads_more_of_full_tables_than_it_needs(server: Database, plans: str) -> None:
    await _full(server.url, analyzed=True)
    # Nothing is forbidden to the planner here.
    async with watched(server.url, {"plan_cache_mode": plans}) as (link, watch):
        pages = await _run_all(link, watch, "run")
    assert {name: read for name, read in pages.items() if read > 2 * TURNS * PAGES_PER_ROW} == {}


async def test_a_plan_that_was_made_on_empty_tables_serves_full_ones(server: Database) -> None:
    settings = {**hot_settings(HOUR), "plan_cache_mode": "force_generic_plan"}
    async with connected(server.url) as connection:
        # Analyzing a table would have all plans made anew.
        for table in (
            *("instances", "history", "waits", "events", "event_keys", "identities", "outbox"),
            *("unmarked", "dead_letters"),
        ):
            await connection.execute(f"ALTER TABLE edda_{table} SET (autovacuum_enabled = off)")
    async with watched(server.url, settings) as (link, watch):
        for transaction in TRANSACTIONS:
            if transaction not in {_accept, _fan_out, _fire, _claim}:  # those want full tables
                await transaction(link, "empty")
        for apart in ("often", "x"):
            await accept.accept(link, 0, given.batch(apart, given.event(apart, apart, addressee="empty-1")))
            await link.fetch("INSERT INTO edda_unmarked VALUES ($1, 1, 0)", given.digest(apart))
            await signal.mark_due(link, 0, [given.digest(apart)], 10)
        await signal.fire_timers(link, 0, 10)
        await claim.load(
            link,
            [one.id for one in await claim.claim(link, 0, APP, ["order"], WORKER, 9, VERSIONS)],
            history=True,
        )
        for table in ("events", "event_keys", "identities"):
            await link.fetch(f"DELETE FROM edda_{table}")
        await _full(server.url, analyzed=False)
        pages = await _run_all(link, watch, "full")
    assert {name: read for name, read in pages.items() if read > 2 * TURNS * PAGES_PER_ROW} == {}


async def test_the_check_finds_a_missing_index_and_a_scan_that_an_index_does_not_help(
    server: Database,
) -> None:
    await _full(server.url, analyzed=True)
    async with watched(server.url, {}) as (link, watch):
        await link.fetch("SELECT 1 FROM edda_waits WHERE hash = $1 AND NOT due", given.digest("unknown"))
        assert watch.faults() == []
        await link.fetch("DROP INDEX edda_waits_hash")
        watch.plans.clear()
        await link.fetch("SELECT 2 FROM edda_waits WHERE hash = $1 AND NOT due", given.digest("unknown"))
        assert [fault.split(" in: ")[0] for fault in watch.faults()] == ["Seq Scan of edda_waits"]
        watch.plans.clear()
        await link.fetch("SET enable_seqscan = off")
        await link.fetch("SELECT 3 FROM edda_waits WHERE name = 'nobody' ORDER BY instance_id, seq")
        assert "of all of edda_waits_pkey" in watch.faults()[0]
        watch.plans.clear()
        await link.fetch("SELECT 4 FROM edda_waits WHERE instance_id > 'filled' AND name = 'nobody'")
        assert "rows of edda_waits" in watch.faults()[0]


async def test_plans_inside_functions_are_watched(server: Database) -> None:
    async with watched(server.url, {}) as (link, watch):
        await _start(link, "run")
        tables = {node.get("Relation Name") for plan in watch.plans for node in nodes(plan["Plan"])}
    assert {"edda_instances", "edda_history"} <= tables


# ---------------------------------------------------------------------------------------------- sweeps

_GROWN_OLD = f"""
UPDATE edda_instances SET state = 'completed', ended_at = 1, owner = NULL, parent = 'gone-' || created_at
WHERE created_at % 10 = 5;
UPDATE edda_instances SET chain = 'filled-' || created_at - 1 WHERE created_at % 100 = 6;
UPDATE edda_instances SET state = 'waiting' WHERE state = 'runnable' AND created_at % 1000 <> 0;
UPDATE edda_instances SET state = 'waiting', owner = NULL WHERE state = 'running' AND created_at % 1000 <> 1;
UPDATE edda_instances SET state = 'paused' WHERE created_at % 5000 = 2;
UPDATE edda_events SET addressee = 'filled-' || seq WHERE seq % 7 = 0;
INSERT INTO edda_sweeps VALUES (1, 'w', 1, 1, 1, {ROWS}, 0, 0, 0, 0);
VACUUM ANALYZE
"""


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
async def test_no_statement_of_a_sweep_reads_more_of_full_tables_than_it_needs(
    store: PostgreSQLStore, server: Database, plans: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, tuple[Any, ...]] = {}
    make = store._make_engine

    def watched_engine(*args: Any, **options: Any) -> Any:
        engine = make(*args, **options)
        sa.event.listen(
            engine.sync_engine,
            "before_cursor_execute",
            lambda _c, _cursor, sql, values, *_: seen.setdefault(sql, tuple(values)),
        )
        return engine

    monkeypatch.setattr(store, "_make_engine", watched_engine)
    await store.close()  # its next connections are watched
    async with connected(server.url) as connection:
        await fill(connection)
        for statement in _GROWN_OLD.split(";"):
            await connection.execute(statement)
        found = await sweeping.everything(store, ROWS // 2)
        assert all(chunks[0].removed for chunks in found.values()), found
        explained = [
            sql for sql in seen if sql.split()[0] in {"SELECT", "UPDATE", "DELETE"} and "edda_" in sql
        ]
        assert len(explained) > 30, "the statements were not seen"
        watch = Watch()
        await connection.execute(f"SET plan_cache_mode = {plans}")
        for number, sql in enumerate(explained):
            await connection.execute(f"PREPARE s{number} AS {sql}")
            values = ", ".join(map(_literal, seen[sql]))
            execute = f"EXECUTE s{number}({values})" if values else f"EXECUTE s{number}"
            plan = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {execute}")
            watch.plans += [{**one, "Query Text": sql[:300]} for one in json.loads(plan)]
    # What is runnable, running or paused is looked at as a whole, by an index of just that.
    of_state = re.compile(r"[A-Za-z ]* of all of edda_instances_(runnable|owner|paused) ")
    faults = [fault for fault in watch.faults() if not of_state.match(fault)]
    assert not faults, "\n".join(faults)


def _literal(value: Any) -> str:
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'"
    return "NULL" if value is None else f"'{value}'"
