"""Plans on full tables: every statement of the hot transactions and of housekeeping goes by an index."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import sqlalchemy as sa

from edda.storage.mysql.connection import Link, Result
from edda.storage.mysql.statements import Rendered, Statement, Value, literal
from edda.storage.mysql.store import MySQLStore
from edda.storage.rows import NewDeadLetter, RelayOutcome, Release, State, Unread
from tests.storage import given, sweeping
from tests.storage.mysql import on

ROWS = 20_000

#: By one packet, of some fifty instances, waits or rows; a poll reads the app's 500 runnable instances.
MOST_READ = 1_000

#: Tables with few rows by their nature: a scan of them is no fault.
_SMALL = {
    "edda_accept",
    "edda_shapes",
    "edda_triggers",
    "edda_workers",
    "edda_relay_leases",
    "edda_source_positions",
    "edda_retention",
    "edda_sweeps",
}

_NUMBERS = (
    "(SELECT a.n + 10 * b.n + 100 * c.n + 1000 * d.n + 10000 * e.n AS n FROM "
    + ", ".join(
        f"({' UNION ALL '.join(f'SELECT {digit} AS n' for digit in range(10 if name != 'e' else 2))}) {name}"
        for name in "abcde"
    )
    + ") numbers"
)

_HASH = "UNHEX(SHA2(CONCAT('key-', n), 256))"

_FILL = f"""
INSERT INTO edda_instances (id, app, workflow, state, owner, fence, signals, chain, chain_started_at, priority,
    available_at, recoveries, start_event, created_at, updated_at, input)
SELECT CONCAT('i-', n), 'shop', 'order',
    CASE n % 40 WHEN 0 THEN 'runnable' WHEN 3 THEN 'running' WHEN 4 THEN 'completed' ELSE 'waiting' END,
    IF(n % 40 = 3, CONCAT('w-', n % 50), NULL), 1, 0, CONCAT('i-', n), 0, 0, n, 0, 0, n, n, '{{}}' FROM {_NUMBERS};
INSERT INTO edda_history (instance_id, seq, pos, fence, kind, name, payload, recorded_at)
SELECT CONCAT('i-', n), 1, 1, 1, 'activity', 'x', '1', 0 FROM {_NUMBERS};
INSERT INTO edda_waits (instance_id, seq, kind, name, hash, chain, `cursor`, skip, deadline, due)
SELECT CONCAT('i-', n), 1, 'event', 'paid', {_HASH}, CONCAT('i-', n), 0, 0, 4000000000000000 + n, 0 FROM {_NUMBERS};
INSERT INTO edda_events (seq, type, source, event_id, attributes, accepted_at)
SELECT n + 1, CONCAT('type-', n % 100), 's', n, '{{}}', n FROM {_NUMBERS};
INSERT INTO edda_identities (digest, data_hash, seq, batch_id)
SELECT UNHEX(SHA2(n, 256)), UNHEX(SHA2('', 256)), n + 1, UNHEX(SUBSTR(SHA2('', 256), 1, 32)) FROM {_NUMBERS};
INSERT INTO edda_event_keys (hash, addressee, seq)
SELECT IF(n % 2, UNHEX(SHA2('often', 256)), {_HASH}), '', n + 1 FROM {_NUMBERS};
INSERT INTO edda_unmarked (hash, seq, created_at) SELECT {_HASH}, n + 1, 4000000000000000 + n FROM {_NUMBERS};
INSERT INTO edda_dead_letters (batch_id, number, origin, raw, headers, reason, attempts, created_at)
SELECT UNHEX(SUBSTR(SHA2(n, 256), 1, 32)), 1, 'o', '', '[]', 'r', 1, n FROM {_NUMBERS};
INSERT INTO edda_outbox (destination, ordering_key, state, type, source, event_id, attributes, attempts, available_at,
    created_at)
SELECT 'default', IF(n % 2, CONCAT('k-', n % 500), NULL),
    CASE n % 20 WHEN 0 THEN 'retrying' WHEN 1 THEN 'dead' WHEN 2 THEN 'pending' ELSE 'parked' END,
    't', 's', n, '{{}}', 0, 0, 0 FROM {_NUMBERS};
INSERT INTO edda_workers (id, app, started_at, expires_at, dead)
SELECT CONCAT('w-', n), 'shop', 0, 4000000000000000, 0 FROM {_NUMBERS} WHERE n < 50;
UPDATE edda_accept SET last_seq = {ROWS};
ANALYZE TABLE edda_instances, edda_history, edda_waits, edda_events, edda_identities, edda_event_keys, edda_outbox,
    edda_workers, edda_unmarked, edda_dead_letters
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a plan."""

    table: str
    access: str
    key: str | None
    rows: int


async def plan(link: Link, statement: str) -> list[Step]:
    steps = []
    # Read by MySQL alone, which else answers with a tree.
    await link.query("SET @plain = 1 /*!80032 , SESSION explain_format = 'TRADITIONAL' */")
    (result,) = await link.query(f"EXPLAIN {statement}")
    # MySQL has two columns that MariaDB has not; from the end they are the same.
    for row in result.rows:
        table, rest = row[2], row[3:] if len(row) == 10 else row[4:]
        kind, _, key, _, _, rows = rest[:6]  # MariaDB: also "ref|filter", "47 (3%)"
        steps.append(Step(str(table), str(kind), key, int(str(rows or 0).split()[0])))
    return steps


def faults(steps: Sequence[Step]) -> list[Step]:
    """Reads of whole tables or whole indexes."""
    return [
        step
        for step in steps
        if step.table not in _SMALL
        and step.access in {"ALL", "index"}
        and step.rows > 1_000
        and not step.table.startswith("<")
    ]


_ALIASES = {
    "u": "edda_unmarked",
    "i": "edda_instances",
    "w": "edda_waits",
    "k": "edda_event_keys",
    "s": "edda_shapes",
}


@pytest.fixture
async def full(store: MySQLStore, link: Link) -> MySQLStore:
    await link.query("SET SESSION wait_timeout = 300")
    await link.query(_FILL)
    return store


@pytest.fixture
async def seen(full: MySQLStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every statement that the store sends from now on."""
    statements: list[str] = []
    run = Link.run

    async def watched(link: Link, *sent: Statement | Rendered) -> Any:
        statements.extend(one.render().decode("latin-1") for one in sent)
        return await run(link, *sent)

    monkeypatch.setattr(Link, "run", watched)

    def cold(_c: Any, _cursor: Any, sql: str, parameters: Any, *_: Any) -> None:
        rows = parameters if isinstance(parameters, list) else [parameters]
        statements.append(sql % tuple(map(_literal, rows[0])))

    make = full._make_engine

    def watched_engine(*args: Any, **options: Any) -> Any:
        engine = make(*args, **options)
        sa.event.listen(engine.sync_engine, "before_cursor_execute", cold)
        return engine

    monkeypatch.setattr(full, "_make_engine", watched_engine)
    await full.close()  # its next connections are watched
    return statements


def _literal(value: Value) -> str:
    return literal(int(value) if isinstance(value, bool) else value).decode("latin-1")


async def everything(store: MySQLStore) -> None:
    """Each transaction once, on what the full tables hold."""
    store.clock_offset_us = 0
    woken = on.digest("key-5")
    batch = on.batch("b", on.event("e", "key-4"), on.event("f", "often"))
    batch = replace(batch, poison=(NewDeadLetter("o", b"", b"[]", "r"),))
    await store.accept(batch)
    await store.accept(batch)  # as after an unknown commit
    assert await store.left_unmarked() == []
    await store.mark_due([woken, on.digest("often")])
    await store.fire_timers()
    claimed = await store.claim("shop", ["order", "other"], on.WORKER, 50, [("order", "2"), ("other", "1")])
    await store.owned(on.WORKER)
    await store.load([one.id for one in claimed] + ["i-5"])
    often = given.event_wait(2, "often", cursor=ROWS - 100, since_us=ROWS - 50)
    for number, release in enumerate((Release.KEEP, Release.PARK, Release.YIELD)):
        one = claimed[number]
        await store.flush(
            [
                given.turn(
                    one.id,
                    fence=one.fence,
                    signals=one.signals,
                    waits=[often, given.event_wait(3, "new")],
                    drop_waits=[9],
                    outbox=[given.message("out")],
                    release=release,
                    reset_recoveries=True,
                )
            ]
        )
    for number, unread in ((3, Unread(on.digest("often"), ROWS - 50)), (4, Unread(on.digest("new"), 0))):
        one = claimed[number]
        await store.flush([given.end(one.id, fence=one.fence, signals=one.signals, unread=unread)])
    paused = given.end(claimed[5].id, fence=claimed[5].fence, end_state=State.PAUSED)
    await store.flush([paused])
    await store.resume(claimed[5].id)
    await store.poll("shop")
    await store.record_fence("i-5", 1)
    await store.get_instance("i-5")
    await store.get_history("i-5")
    await store.find_instances(limit=10)
    await store.events_of_pattern("type-7", 0, ROWS, 50)
    await store.events_of_pattern("type-7.*", 0, ROWS, 50)
    taken = await store.outbox_take("default", "relay", given.HOUR, 100, 1 << 20)
    ids = [row.id for row in taken.rows]
    outcome = RelayOutcome(tuple(ids[:5]), ((ids[5], 1, "why"),), ((ids[6], "why"),), tuple(ids[7:9]))
    assert await store.outbox_settle("default", "relay", outcome)
    await store.requeue_expired()
    await store.retire_worker("w-1")


async def test_no_statement_reads_a_whole_table(full: MySQLStore, seen: list[str], link: Link) -> None:
    await everything(full)
    # What runs on the plan's connection must find the transaction's time, too.
    await link.query("SET @edda_now = 1795567065771843")
    explained = {}
    for statement in dict.fromkeys(seen):
        verb = statement.lstrip("( ").split(" ", 1)[0].upper()
        if verb in {"SELECT", "UPDATE", "DELETE"} and "edda_" in statement:
            steps = await plan(link, statement)
            explained[statement] = [
                Step(_ALIASES.get(step.table, step.table), step.access, step.key, step.rows) for step in steps
            ]
    assert len(explained) > 40, "the statements were not seen"
    found = {statement[:300]: bad for statement, steps in explained.items() if (bad := faults(steps))}
    assert not found, "\n".join(f"{statement}: {bad}" for statement, bad in found.items())


_GROWN_OLD = f"""
UPDATE edda_instances SET ended_at = 1, parent = CONCAT('gone-', created_at) WHERE state = 'completed';
UPDATE edda_instances SET state = 'waiting' WHERE state = 'runnable' AND created_at % 400 <> 0;
UPDATE edda_events SET addressee = CONCAT('i-', seq) WHERE seq % 7 = 0;
INSERT INTO edda_sweeps VALUES (1, 'w', 1, 1, 1, {ROWS}, 0, 0, 0, 0);
ANALYZE TABLE edda_instances, edda_events
"""


async def test_no_statement_of_a_sweep_reads_a_whole_table(
    full: MySQLStore, seen: list[str], link: Link
) -> None:
    await link.query(_GROWN_OLD)
    seen.clear()
    found = await sweeping.everything(full, ROWS // 2)
    assert all(chunks[0].removed for chunks in found.values()), found
    explained = {}
    for statement in dict.fromkeys(seen):
        if statement.split(None, 1)[0].upper() in {"SELECT", "UPDATE", "DELETE"} and "edda_" in statement:
            explained[statement] = await plan(link, statement)
    assert len(explained) > 30, "the statements were not seen"
    wrong = {statement[:300]: bad for statement, steps in explained.items() if (bad := faults(steps))}
    assert not wrong, "\n".join(f"{statement}: {bad}" for statement, bad in wrong.items())


async def test_no_packet_reads_more_rows_than_it_is_about(
    full: MySQLStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await full.close()
    reads: dict[str, int] = {}
    query = Link.query

    async def counted(link: Link, packet: str | bytes) -> list[Result]:
        before = await _rows_read(link)
        results = await query(link, packet)
        text = packet if isinstance(packet, str) else packet.decode("latin-1")
        reads[text] = await _rows_read(link) - before
        return results

    async def _rows_read(link: Link) -> int:
        (result,) = await query(link, "SHOW SESSION STATUS LIKE 'Handler_read%'")
        # Asking counts, too: as reads of a temporary table, which is what it makes of the answer.
        return sum(int(number) for name, number in result.rows if name != "Handler_read_rnd_next")

    monkeypatch.setattr(Link, "query", counted)
    await everything(full)
    assert len(reads) > 15
    large = {text[:2_000]: rows for text, rows in reads.items() if rows > MOST_READ}
    assert not large, "\n".join(f"{rows} rows: {text}" for text, rows in large.items())


async def test_the_look_at_plans_sees_a_scan(full: MySQLStore, link: Link) -> None:
    scans = [
        "SELECT id FROM edda_instances WHERE input = 'x'",
        "UPDATE edda_waits SET due = 1 WHERE name = 'x'",
        "SELECT seq FROM edda_event_keys FORCE INDEX (edda_event_keys_seq) ORDER BY seq",
    ]
    for scan in scans:
        assert faults(await plan(link, scan)), scan
    assert not faults(await plan(link, "SELECT id FROM edda_instances WHERE id = 'i-5'"))
