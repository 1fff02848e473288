"""Marking waits due and signalling their instances: what accept, timers and shapes have in common.

Anyone may do it again at any time: it marks what is not marked yet. It never says which event a wait gets; the claim,
or the owner's next turn, chooses.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from edda.storage.sqlite.statements import Value, among, pairs

_KEY = (
    "EXISTS (SELECT 1 FROM edda_event_keys k WHERE k.hash = w.hash AND k.addressee = {} AND k.seq > w.cursor "
    "AND k.seq <> w.skip)"
)

#: Condition on a wait ``w``: its shape is ready (no shape: it is).
SHAPE_READY = "NOT EXISTS (SELECT 1 FROM edda_shapes s WHERE s.id = w.shape_id AND s.ready = 0)"

#: Condition on a wait ``w``: it is for events, its shape is ready, and it has an unreceived event.
HAS_EVENT = f"(w.kind = 'event' AND {SHAPE_READY} AND ({_KEY.format(repr(''))} OR {_KEY.format('w.chain')}))"


def these_waits(keys: str) -> str:
    """Condition on a wait: it has one of these keys (instance, seq), which ``pairs`` gives.

    Not ``(instance_id, seq) IN``: for more than a few keys SQLite walks through the table then.
    """
    return (
        f"rowid IN (SELECT t.rowid FROM {keys} p CROSS JOIN edda_waits t "
        "ON t.instance_id = p.column1 AND t.seq = p.column2)"
    )


def mark(c: sqlite3.Connection, waits: Sequence[tuple[str, int]]) -> None:
    """These waits (instance, seq) are due."""
    for keys, values in pairs(waits):
        c.execute(f"UPDATE edda_waits SET due = 1 WHERE {these_waits(keys)}", values)


def signal(c: sqlite3.Connection, waits: Sequence[tuple[str, int]], now: int) -> set[str]:
    """Mark these waits (instance, seq) due and signal their instances; the apps to tell."""
    mark(c, waits)
    apps: set[str] = set()
    for marks, ids in among(sorted({instance for instance, _ in waits})):
        c.execute(
            "UPDATE edda_instances SET signals = signals + 1, "
            "available_at = iif(state = 'waiting', ?, available_at), "
            "updated_at = iif(state = 'waiting', ?, updated_at), "
            "state = iif(state = 'waiting', 'runnable', state) "
            f"WHERE ended_at IS NULL AND id IN {marks}",
            [now, now, *ids],
        )
        found = c.execute(
            f"SELECT DISTINCT app FROM edda_instances WHERE ended_at IS NULL AND id IN {marks}", ids
        )
        apps.update(app for (app,) in found)
    return apps


def mark_due(
    c: sqlite3.Connection, now: int, hashes: Sequence[bytes], limit: int
) -> tuple[frozenset[str], bool]:
    """Waits of these hashes that have an unreceived event and are not due yet; if that was all, what accepts left."""
    waits: list[tuple[str, int]] = []
    distinct = sorted(set(hashes))
    for marks, values in among(distinct):
        room = limit + 1 - len(waits)
        waits += c.execute(
            "SELECT w.instance_id, w.seq FROM edda_waits w INDEXED BY edda_waits_hash "
            f"WHERE w.hash IN {marks} AND w.due = 0 AND {HAS_EVENT} LIMIT ?",
            [*values, room],
        )
    more = len(waits) > limit
    for marks, values in () if more else among(distinct):
        c.execute(f"DELETE FROM edda_unmarked WHERE hash IN {marks}", values)
    return frozenset(signal(c, waits[:limit], now)), more


def fire_timers(c: sqlite3.Connection, now: int, limit: int) -> tuple[frozenset[str], int]:
    """Waits whose deadline has come."""
    values: tuple[Value, ...] = (now, limit)
    waits = c.execute(
        "SELECT instance_id, seq FROM edda_waits INDEXED BY edda_waits_deadline "
        "WHERE due = 0 AND deadline <= ? ORDER BY deadline LIMIT ?",
        values,
    ).fetchall()
    return frozenset(signal(c, waits, now)), len(waits)
