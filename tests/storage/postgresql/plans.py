"""What the server did for a statement, those inside functions included: nodes that read too much, pages read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest

from edda.storage.postgresql.connection import Link, Row

ROWS = 100_000

#: Tables with few rows by their nature: reading all of them is no fault.
SMALL = {
    *("edda_accept", "edda_shapes", "edda_triggers", "edda_workers"),
    *("edda_relay_leases", "edda_source_positions", "edda_retention", "edda_sweeps"),
}

_INSTANCES = """
INSERT INTO edda_instances (id, app, workflow, state, owner, fence, signals, chain, chain_started_at, priority,
    available_at, recoveries, start_event, created_at, updated_at, input)
SELECT 'filled-' || n, 'shop', 'order', CASE n % 10 WHEN 0 THEN 'runnable' WHEN 1 THEN 'running' ELSE 'waiting' END,
    CASE n % 10 WHEN 1 THEN 'worker-' || n % 500 END, 1, 0, 'filled-' || n, 0, 0, n, 0, 0, n, n, '{}'
FROM generate_series(1, $1) n
"""
_HISTORY = """
INSERT INTO edda_history (instance_id, seq, pos, fence, kind, name, payload, recorded_at)
SELECT 'filled-' || n, 1, 1, 1, 'activity', 'x', '1', 0 FROM generate_series(1, $1) n
"""
_WAITS = """
INSERT INTO edda_waits (instance_id, seq, kind, name, hash, chain, cursor, skip, deadline, due)
SELECT 'filled-' || n, 1, CASE n % 2 WHEN 0 THEN 'event' ELSE 'timer' END, 'paid',
    CASE n % 50 WHEN 0 THEN sha256('often') ELSE sha256(('key-' || n)::bytea) END, 'filled-' || n, 0, 0,
    CASE n % 2 WHEN 1 THEN 4000000000000000 + n END, false
FROM generate_series(1, $1) n
"""
_EVENTS = """
INSERT INTO edda_events (seq, type, source, event_id, attributes, accepted_at)
SELECT n, 'type-' || n % 100, 's', n, '{}', n FROM generate_series(1, $1) n
"""
_KEYS = """
INSERT INTO edda_event_keys (hash, addressee, seq)
SELECT CASE n % 2 WHEN 0 THEN sha256('many') ELSE sha256(('event-' || n)::bytea) END, '', n
FROM generate_series(1, $1) n
"""
_IDENTITIES = """
INSERT INTO edda_identities (digest, data_hash, seq, batch_id)
SELECT sha256(n::text::bytea), sha256(''), n, '\\x00' FROM generate_series(1, $1) n
"""
_UNMARKED = """
INSERT INTO edda_unmarked (hash, seq, created_at)
SELECT CASE n % 1000 WHEN 0 THEN sha256('left') ELSE sha256(('key-' || n)::bytea) END, n, 4000000000000000 + n
FROM generate_series(1, $1) n
"""
_LETTERS = """
INSERT INTO edda_dead_letters (batch_id, number, origin, raw, headers, reason, attempts, created_at)
SELECT substr(sha256(n::text::bytea), 1, 16), 1, 'o', '', '[]', 'r', 1, n FROM generate_series(1, $1) n
"""
_OUTBOX = """
INSERT INTO edda_outbox (destination, ordering_key, state, type, source, event_id, attributes, attempts, available_at,
    created_at)
SELECT 'default', 'k-' || n % 500, 'dead', 't', 's', n, '{}', 1, 0, 0 FROM generate_series(1, $1) n
"""


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection[Row]]:
    connection: asyncpg.Connection[Row] = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def fill(connection: asyncpg.Connection[Row]) -> None:
    """A hundred thousand rows in every table that may have as many; the events are accepted already."""
    for statement in (
        *(_INSTANCES, _HISTORY, _WAITS, _EVENTS, _KEYS, _IDENTITIES),
        *(_UNMARKED, _LETTERS, _OUTBOX),
    ):
        await connection.execute(statement, ROWS)
    await connection.execute("UPDATE edda_accept SET last_seq = $1, last_accepted_at = $1", ROWS)


@dataclass(slots=True)
class Watch:
    """The plans of what ran on a connection since it was last asked."""

    plans: list[dict[str, Any]] = field(default_factory=list)

    def hear(self, message: str) -> None:
        if "plan:\n" in message:
            self.plans.append(json.loads(message.split("plan:\n", 1)[1]))

    def faults(self) -> list[str]:
        """What reads all of a table, or more rows than it needs."""
        faults = []
        for plan in self.plans:
            text = " ".join(plan["Query Text"].split())
            faults += [f"{fault} in: {text}" for node in nodes(plan["Plan"]) if (fault := _fault(node))]
        return faults

    @property
    def pages(self) -> int:
        """Read or found in memory, by the outermost statements together with all inside."""
        return max(
            (
                plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
                for plan in self.plans
                if "Plan" in plan
            ),
            default=0,
        )


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from nodes(child)


def _fault(node: dict[str, Any]) -> str | None:
    kind, index = node["Node Type"], node.get("Index Name", "")
    table = node.get("Relation Name", "_".join(index.split("_")[:2]) if index else "")
    if not table.startswith("edda_") or any(table in small or index.startswith(small) for small in SMALL):
        return None
    if kind == "Seq Scan":
        return f"Seq Scan of {table}"
    if not kind.endswith("Scan"):
        return None
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    rows = (node["Actual Rows"] + removed) * max(1, node["Actual Loops"])
    # Without a condition an index may be read in its order, below a LIMIT.
    if index and "Index Cond" not in node and rows > 10:
        return f"{kind} of all of {index}"
    return f"{kind} of {rows:g} rows of {table}" if rows > ROWS / 20 else None


@asynccontextmanager
async def watched(url: str, settings: dict[str, str]) -> AsyncIterator[tuple[Link, Watch]]:
    """A connection whose statements, those inside functions included, tell their plans."""
    connection: asyncpg.Connection[Row] = await asyncpg.connect(url, server_settings=settings)
    try:
        try:
            await connection.execute("LOAD 'auto_explain'")
        except asyncpg.InsufficientPrivilegeError:
            pytest.skip("the plans inside functions are told to a superuser only")
        for name, value in {
            "log_min_duration": "0",
            "log_nested_statements": "on",
            "log_analyze": "on",
            "log_buffers": "on",
            "log_timing": "off",
            "log_format": "json",
            "log_level": "notice",
        }.items():
            await connection.execute(f"SET auto_explain.{name} = {value}")
        await connection.execute("SET client_min_messages = notice")
        watch = Watch()
        connection.add_log_listener(lambda _, message: watch.hear(message.message))
        yield Link(connection, "", lambda _: None), watch
    finally:
        await connection.close()
