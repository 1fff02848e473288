"""Statements: rows in order whatever their number, few steps, and no walk through a table."""

import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from edda.storage.rows import Applied, Expiring, NewDeadLetter, PositionAdvance, Release, State
from edda.storage.sqlite.statements import among, pairs, write
from edda.storage.sqlite.store import SQLiteStore
from tests.storage import given, sweeping
from tests.storage.given import APP, HOUR, WORKER


@contextmanager
def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.execute("CREATE TABLE t (number INTEGER PRIMARY KEY AUTOINCREMENT, a, b, UNIQUE (a, b))")
        yield connection
    finally:
        connection.close()


@for_all(st.lists(st.tuples(st.integers(-5, 5), st.binary(max_size=2)), max_size=70))
def test_rows_are_written_in_their_order_and_counted(rows: list[tuple[int, bytes]]) -> None:
    with database() as c:
        written = write(c, "INSERT INTO t (a, b) VALUES", "(?, ?)", rows, "ON CONFLICT DO NOTHING")
        found = c.execute("SELECT a, b FROM t ORDER BY number").fetchall()
    assert found == list(dict.fromkeys(rows))
    assert written == len(found)


@for_all(st.lists(st.integers(0, 2_000), max_size=1_200))
def test_values_in_pieces_are_all_there_and_no_others(values: list[int]) -> None:
    pieces = list(among(values))
    assert [value for _, piece in pieces for value in dict.fromkeys(piece)] == [
        value for at in range(0, len(values), 512) for value in dict.fromkeys(values[at : at + 512])
    ]
    for marks, piece in pieces:
        assert marks.count("?") == len(piece)
        assert len(piece).bit_count() == 1, "few texts: only powers of two"


@for_all(st.lists(st.tuples(st.integers(0, 9), st.binary(max_size=1)), max_size=40))
def test_pairs_find_their_rows_and_no_others(keys: list[tuple[int, bytes]]) -> None:
    with database() as c:
        write(c, "INSERT INTO t (a, b) VALUES", "(?, ?)", [(a, bytes([b])) for a in range(9) for b in (0, 9)])
        found = [
            row
            for marks, values in pairs(keys)
            for row in c.execute(f"SELECT a, b FROM t WHERE (a, b) IN {marks}", values)
        ]
    assert sorted(found) == sorted({key for key in keys if key[0] < 9 and key[1] in {b"\0", b"\t"}})


# ---------------------------------------------------------------------------------------------- steps


@pytest.fixture
async def sent(sqlite_store: SQLiteStore) -> AsyncIterator[list[str]]:
    """What the store's connections execute, with the values in it."""
    statements: list[str] = []
    threads = (sqlite_store._writer, sqlite_store._reader)
    for thread in threads:
        await thread.run(lambda c: c.set_trace_callback(statements.append))
    statements.clear()
    yield statements
    for thread in threads:
        await thread.run(lambda c: c.set_trace_callback(None))


async def test_fifty_turns_of_a_step_are_seven_statements(sqlite_store: SQLiteStore, sent: list[str]) -> None:
    names = [f"order-{number}" for number in range(50)]
    await given.started(sqlite_store, *names)
    sent.clear()
    assert set(await given.applied(sqlite_store, *(given.turn(name, 1) for name in names))) == {
        Applied.APPLIED
    }
    assert [re.match(r"\w+( OR \w+ INTO \w+)?", text)[0] for text in sent] == [  # type: ignore[index]
        "BEGIN", "SELECT", *["INSERT OR FAIL INTO edda_history"] * 4, "COMMIT",
    ]  # fmt: skip


async def test_a_new_workflow_is_started_stepped_and_ended_without_more_texts_to_prepare(
    sqlite_store: SQLiteStore, sent: list[str]
) -> None:
    async def run(count: int) -> None:
        names = [f"order-{count}-{number}" for number in range(count)]
        await given.started(sqlite_store, *names)
        await given.flush(sqlite_store, *(given.turn(name, 1) for name in names))
        await given.flush(sqlite_store, *(given.end(name, 2) for name in names))

    for count in (1, 2, 3, 5, 16, 31, 47, 50):
        await run(count)
    texts = {re.sub(r"x?'(?:[^']|'')*'|\b\d+\b|NULL", "?", text) for text in sent}
    assert len(texts) < 50


# ---------------------------------------------------------------------------------------------- plans

#: Small by their nature.
_SMALL = {"edda_accept", "edda_shapes", "edda_workers", "edda_source_positions", "edda_sweeps"}


#: All of a table, or all that has one of a few states.
_WALK = re.compile(r"SCAN (\w+)|SEARCH (\w+) USING .*INDEX \w+ \((?:due|state|dead)=\?\)$")


def walks(c: sqlite3.Connection, statement: str) -> list[str]:
    """Where a statement would go through all of a table, or nearly."""
    names = dict[str, str]()
    for table, alias in re.findall(r"\b(edda_\w+)(?: AS)? (\w)\b", statement):
        names[alias] = table
    found = [_WALK.match(row[-1]) for row in c.execute(f"EXPLAIN QUERY PLAN {statement}")]
    tables = [str(match[1] or match[2]) for match in found if match]
    tables = [names.get(table, table) for table in tables]
    return [table for table in tables if table.startswith("edda_") and table not in _SMALL]


async def test_no_hot_statement_walks_through_a_table(
    sqlite_store: SQLiteStore, raw: sqlite3.Connection, sent: list[str]
) -> None:
    store = sqlite_store
    await everything(store)
    hot = [text for text in dict.fromkeys(sent) if text not in {"BEGIN", "BEGIN IMMEDIATE", "COMMIT"}]
    assert len(hot) > 30
    for table in (
        *("instances", "history", "waits", "events", "event_keys", "identities", "outbox"),
        *("unmarked", "dead_letters"),
    ):
        assert any(f"edda_{table}" in text for text in hot), table
    assert {text: found for text in hot if (found := walks(raw, text))} == {}


async def test_no_statement_of_a_sweep_walks_through_a_table(
    sqlite_store: SQLiteStore, raw: sqlite3.Connection, sent: list[str]
) -> None:
    await everything(sqlite_store)
    await given.accepted(sqlite_store, given.event("unwanted", "nobody's", addressee="nobody"))
    await sweeping.everything(sqlite_store, 0)  # that its events are known to be old
    sent.clear()
    found = await sweeping.everything(sqlite_store, await sqlite_store.now() + HOUR)
    assert all(chunks[0].removed for what, chunks in found.items() if what is not Expiring.DEAD_ROWS), found
    texts = [text for text in dict.fromkeys(sent) if text.split(" ")[0] in {"SELECT", "UPDATE", "DELETE"}]
    # All that is in one of a few states is looked at, by an index of just these.
    by_state = [text for text in texts if "state = '" in text]
    for text in by_state:
        steps = [row[-1] for row in raw.execute(f"EXPLAIN QUERY PLAN {text}") if "edda_" in row[-1]]
        assert all(
            re.search(r"INDEX edda_(instances_(runnable|owner|paused)|outbox_state)\b", one) for one in steps
        )
    assert len(by_state) == 2
    texts = [text for text in texts if text not in by_state]
    assert len(texts) > 25
    assert {text: walked for text in texts if (walked := walks(raw, text))} == {}


async def everything(store: SQLiteStore) -> None:
    """Every hot transaction, with something to do for each of its statements."""
    await store.insert_instances([given.instance("new", delay_us=HOUR), given.instance("old", priority=3)])
    await given.started(store, "a", "b", "c", "d", "e", live_key=None)
    await given.flush(
        store,
        given.park("a", given.event_wait(2, "k", since_us=17), records=[given.record(1)]),
        given.park("b", given.event_wait(1, "k"), given.timer(2, delay_us=HOUR), drop_waits=[7]),
        given.turn(
            "c",
            1,
            waits=[given.event_wait(2, "k")],
            outbox=[given.message("e", ordering_key="x")],
            children=[given.instance("child")],
            reset_recoveries=True,
        ),
        given.end("d", 1, unread=given.unread("k", 0), successor=None),
        given.turn("e", release=Release.YIELD),
    )
    await given.flush(store, given.turn("c", 1))  # a repeat
    many = [f"many-{number}" for number in range(40)]
    await given.started(store, *many)
    await given.flush(
        store, *(given.park(one, given.event_wait(2, "k"), drop_waits=[7]) for one in many[:20])
    )
    await given.flush(store, *(given.turn(one, 1, waits=[given.event_wait(2, "k")]) for one in many[20:]))
    await given.flush(store, *(given.turn(one, 1, drop_waits=[2]) for one in many[20:]))
    await given.flush(store, *(given.end(one) for one in many[20:]))
    for _ in range(2):  # the second time as after an unknown commit
        await given.accepted(
            store,
            given.event("e1", "k", starts=(given.instance("started"),)),
            given.event("e2", "k", addressee="a"),
            given.event("e3", "l", addressee="b"),
            positions=(PositionAdvance("c", "g", "t", 0, 0, 3),),
            poison=(NewDeadLetter("o", b"", b"[]", "r"),),
        )
    await given.flush(
        store, replace(given.end("c", 5, unread=given.unread("k", 0)), signals=1, end_state=State.FAILED)
    )
    await given.flush(store, given.turn("c", signals=1, waits=[given.event_wait(9, "k")]))
    await store.mark_due([given.digest("k"), given.digest("l")])
    store.clock_offset_us += HOUR
    await store.fire_timers()
    claimed = await store.claim(APP, ["order"], WORKER, 10)
    assert {"a", "b", "old"} <= {one.id for one in claimed}
    await store.owned(WORKER)
    await store.load([one.id for one in claimed])
    await store.poll(APP)


@pytest.mark.parametrize(
    "planted",
    [
        "SELECT id FROM edda_instances WHERE workflow = 'order'",
        "SELECT w.seq FROM edda_waits w WHERE w.name = 'paid'",
        "SELECT 1 WHERE EXISTS (SELECT 1 FROM edda_event_keys k WHERE k.addressee = '')",
        "SELECT instance_id FROM edda_waits w WHERE w.due = 1",
        "SELECT id FROM edda_outbox WHERE state = 'dead'",
        "UPDATE edda_waits AS w SET due = 1 WHERE w.detail IS NULL",
    ],
)
async def test_the_check_finds_a_walk(raw: sqlite3.Connection, planted: str) -> None:
    assert len(walks(raw, planted)) == 1
