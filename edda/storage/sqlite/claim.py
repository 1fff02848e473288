"""Claim and load: become the owner of runnable instances, then read what is needed to run them.

A claim is a transaction of the writer. ``load`` reads one snapshot, taken after the claim's commit: what changes behind
it raises ``signals`` again and makes the owner look again.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json

from edda.storage.rows import ClaimedInstance, EventRow, LoadedInstance, Record, WaitKind, WaitRow
from edda.storage.sqlite.signal import SHAPE_READY
from edda.storage.sqlite.statements import among

#: In the order of ``EventRow``.
EVENT_COLUMNS = "seq, type, source, event_id, attributes, data, content_type, addressee, accepted_at"

# In the order of ClaimedInstance, and of Record.
_CLAIMED = (
    "id, app, workflow, version, fence, signals, chain, chain_started_at, created_at, start_event, recoveries, "
    "input, carried, live_key"
)
_RECORD = "seq, pos, kind, name, payload, content_type, args_hash, recorded_at"

#: A parameter of JSON: pairs of workflow and version.
_FOR_THESE_VERSIONS = (
    "(version IS NULL OR (workflow, version) IN "
    "(SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)))"
)

_FIRST = (
    "(SELECT k.seq FROM edda_event_keys k WHERE k.hash = w.hash AND k.addressee = {} AND k.seq > w.cursor "
    "AND k.seq <> w.skip ORDER BY k.seq LIMIT 1)"
)
_CHOOSES = f"w.due = 1 AND w.kind = 'event' AND {SHAPE_READY}"
_WAIT = (
    "w.instance_id, w.seq, w.kind, w.name, w.hash, w.cursor, w.deadline, w.due, w.detail, "
    f"CASE WHEN {_CHOOSES} THEN {_FIRST.format(repr(''))} END, "
    f"CASE WHEN {_CHOOSES} THEN {_FIRST.format('w.chain')} END"
)


def claim(
    c: sqlite3.Connection,
    now: int,
    app: str,
    workflows: Sequence[str],
    worker: str,
    limit: int,
    versions: Sequence[tuple[str, str]],
) -> list[ClaimedInstance]:
    """One transaction; see the contract."""
    if not c.execute("SELECT 1 FROM edda_workers WHERE id = ? AND dead = 0", (worker,)).fetchall():
        return []
    rows: list[Any] = []
    for marks, names in among(workflows):
        rows += c.execute(
            f"SELECT {_CLAIMED} FROM edda_instances INDEXED BY edda_instances_runnable "
            f"WHERE state = 'runnable' AND app = ? AND available_at <= ? AND workflow IN {marks} "
            f"AND {_FOR_THESE_VERSIONS} ORDER BY priority DESC, available_at LIMIT ?",
            [app, now, *names, to_json(versions).decode(), limit - len(rows)],
        )
    for marks, ids in among([row[0] for row in rows]):
        c.execute(
            "UPDATE edda_instances SET state = 'running', owner = ?, fence = fence + 1, updated_at = ? "
            f"WHERE id IN {marks}",
            [worker, now, *ids],
        )
    return [_claimed((*row[:4], row[4] + 1, *row[5:])) for row in rows]


def owned(c: sqlite3.Connection, worker: str) -> list[ClaimedInstance]:
    """What the worker owns."""
    query = f"SELECT {_CLAIMED} FROM edda_instances WHERE owner = ? AND state = 'running' ORDER BY id"
    return [_claimed(row) for row in c.execute(query, (worker,))]


def _claimed(row: tuple[Any, ...]) -> ClaimedInstance:
    return ClaimedInstance(*row)


def load(c: sqlite3.Connection, ids: Sequence[str], *, history: bool) -> dict[str, LoadedInstance]:
    """One snapshot; see the contract."""
    loaded: dict[str, LoadedInstance] = {}
    for marks, piece in among(ids):
        signals = c.execute(f"SELECT id, signals FROM edda_instances WHERE id IN {marks}", piece).fetchall()
        records: dict[str, list[Record]] = defaultdict(list)
        if history:
            for row in c.execute(
                f"SELECT instance_id, {_RECORD} FROM edda_history WHERE instance_id IN {marks} "
                "ORDER BY instance_id, pos",
                piece,
            ):
                records[row[0]].append(Record(*row[1:]))
        waits = _waits(c, marks, piece)
        loaded.update(
            (one, LoadedInstance(tuple(records[one]), tuple(waits[one]), seen)) for one, seen in signals
        )
    return loaded


def _waits(c: sqlite3.Connection, marks: str, ids: Sequence[str]) -> dict[str, list[WaitRow]]:
    rows = c.execute(
        f"SELECT {_WAIT} FROM edda_waits w WHERE w.instance_id IN {marks} ORDER BY w.instance_id, w.seq", ids
    ).fetchall()
    firsts = [min((seq for seq in row[-2:] if seq is not None), default=0) for row in rows]
    events = _events(c, sorted({seq for seq in firsts if seq}))
    waits: dict[str, list[WaitRow]] = defaultdict(list)
    for row, first in zip(rows, firsts, strict=True):
        instance, seq, kind, name, key, cursor, deadline, due, detail, _, _ = row
        waits[instance].append(
            WaitRow(seq, WaitKind(kind), name, key, cursor, deadline, bool(due), detail, events.get(first))
        )
    return waits


def _events(c: sqlite3.Connection, seqs: Sequence[int]) -> dict[int, EventRow]:
    found: dict[int, EventRow] = {}
    for marks, piece in among(seqs):
        rows = c.execute(f"SELECT {EVENT_COLUMNS} FROM edda_events WHERE seq IN {marks}", piece)
        found.update((row[0], EventRow(*row)) for row in rows)
    return found
