"""The turn: turns of many instances in one transaction.

Insert what starts · read the instances · judge each turn · write records, waits, outbox, children · release.

Whether a record exists already is asked only after its insert was refused: it costs most flushes nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from pydantic_core import from_json

from edda.storage.rows import (
    Applied,
    EventRow,
    FlushResult,
    NewInstance,
    Release,
    State,
    Turn,
    TurnResult,
    Unread,
    WaitKind,
)
from edda.storage.sqlite.claim import EVENT_COLUMNS
from edda.storage.sqlite.rows import insert_history, insert_instances, insert_outbox, register_waits
from edda.storage.sqlite.signal import HAS_EVENT, mark, these_waits
from edda.storage.sqlite.statements import among, pairs, write


class RepeatedFlushError(Exception):
    """A record exists already: an earlier try was committed, or another owner has written it. Internal."""


class _Instance(NamedTuple):
    owner: str | None
    fence: int
    signals: int
    chain: str


_Instances: TypeAlias = dict[str, _Instance]
_Fences: TypeAlias = dict[tuple[str, int], int]


def flush(c: sqlite3.Connection, now: int, turns: Sequence[Turn], *, careful: bool) -> FlushResult:
    """One transaction; see the contract.

    Raises RepeatedFlushError if a record exists already and nobody has looked: run it again, ``careful``.
    """
    insert_instances(c, (_owned(turn, turn.start) for turn in turns if turn.start is not None), now)
    instances = _read(c, [turn.instance_id for turn in turns])
    written = _first_records(c, turns) if careful else {}
    results = [_judge(turn, instances.get(turn.instance_id), written) for turn in turns]
    ours = [turn for turn, result in zip(turns, results, strict=True) if result is None]
    # Without those that an earlier try has written: written twice, a wait that has fired since would come back.
    fresh = [turn for turn in ours if not turn.records or _first(turn) not in written]
    try:
        insert_history(c, ((t.instance_id, t.fence, record) for t in fresh for record in t.records), now)
    except sqlite3.IntegrityError as error:
        if careful or error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
            raise
        raise RepeatedFlushError from error
    _write(c, fresh, instances, now)
    released = _release(c, ours, instances, now)
    return FlushResult(
        now,
        tuple(result or released[turn.instance_id] for turn, result in zip(turns, results, strict=True)),
    )


# ---------------------------------------------------------------------------------------------- what is there


def _owned(turn: Turn, start: NewInstance) -> NewInstance:
    return start if start.owner == turn.owner else replace(start, owner=turn.owner)


def _first(turn: Turn) -> tuple[str, int]:
    return turn.instance_id, turn.records[0].seq


def _read(c: sqlite3.Connection, ids: Sequence[str]) -> _Instances:
    found: _Instances = {}
    for marks, values in among(ids):
        ((rows,),) = c.execute(
            "SELECT json_group_array(json_array(id, owner, fence, signals, chain)) FROM edda_instances "
            f"WHERE id IN {marks}",
            values,
        )
        found.update((row[0], _Instance(*row[1:])) for row in from_json(rows))
    return found


def _first_records(c: sqlite3.Connection, turns: Sequence[Turn]) -> _Fences:
    """The fences under which first records of these turns were written already."""
    found: _Fences = {}
    for keys, values in pairs([_first(turn) for turn in turns if turn.records]):
        rows = c.execute(
            f"SELECT h.instance_id, h.seq, h.fence FROM {keys} p CROSS JOIN edda_history h "
            "ON h.instance_id = p.column1 AND h.seq = p.column2",
            values,
        )
        found.update(((instance, seq), fence) for instance, seq, fence in rows)
    return found


def _judge(turn: Turn, row: _Instance | None, written: _Fences) -> TurnResult | None:
    """What became of a turn that is not ours to write; None for one that is."""
    refused = Applied.LOST if turn.start is None else Applied.EXISTS
    if row is None:
        return TurnResult(refused, 0)
    if row.fence != turn.fence:
        return TurnResult(refused, row.signals)
    if row.owner is None and turn.release is not Release.KEEP and turn.start is None:
        # Only a release takes the owner away and leaves the fence: an earlier try of this turn was committed.
        return TurnResult(Applied.APPLIED, row.signals)
    if row.owner != turn.owner:
        return TurnResult(refused, row.signals)
    if written and turn.records and written.get(_first(turn), row.fence) != row.fence:
        return TurnResult(Applied.LOST, row.signals)
    return None


# ---------------------------------------------------------------------------------------------- what a turn brings


def _write(c: sqlite3.Connection, turns: Sequence[Turn], instances: _Instances, now: int) -> None:
    with_waits = [turn for turn in turns if turn.waits]
    if with_waits:
        floors = _floors(c, {w.since_us for t in with_waits for w in t.waits if w.since_us is not None})
        register_waits(
            c,
            (
                (
                    t.instance_id,
                    instances[t.instance_id].chain,
                    wait,
                    wait.cursor if wait.since_us is None else max(wait.cursor, floors[wait.since_us]),
                )
                for t in with_waits
                for wait in t.waits
            ),
            now,
        )
    for keys, values in pairs([(t.instance_id, seq) for t in turns for seq in t.drop_waits]):
        c.execute(f"DELETE FROM edda_waits WHERE {these_waits(keys)}", values)
    insert_outbox(c, [message for t in turns for message in t.outbox], now)
    insert_instances(c, (child for t in turns for child in t.children), now)
    for marks, ids in among([t.instance_id for t in turns if t.reset_recoveries]):
        c.execute(f"UPDATE edda_instances SET recoveries = 0 WHERE id IN {marks}", ids)


def _floors(c: sqlite3.Connection, times: Iterable[int]) -> dict[int, int]:
    """For each time the last event accepted before it."""
    query = (
        "SELECT seq FROM edda_events INDEXED BY edda_events_accepted WHERE accepted_at < ? "
        "ORDER BY accepted_at DESC, seq DESC LIMIT 1"
    )
    return {time: (c.execute(query, (time,)).fetchone() or (0,))[0] for time in times}


# ---------------------------------------------------------------------------------------------- how it ends


def _release(
    c: sqlite3.Connection, turns: Sequence[Turn], instances: _Instances, now: int
) -> dict[str, TurnResult]:
    parking: list[str] = []
    yielding: list[str] = []
    ending: list[Turn] = []
    staying: list[Turn] = []
    unread: dict[str, EventRow] = {}
    for turn in turns:
        mine = turn.instance_id
        stale = instances[mine].signals != turn.signals
        if turn.release is Release.YIELD:
            yielding.append(mine)
        elif turn.release is Release.END and (turn.end_state is State.PAUSED or not stale):
            event = _first_unread(c, turn)
            if event is None:
                ending.append(turn)
            else:
                unread[mine] = event
                staying.append(turn)
        elif turn.release is Release.PARK and not stale:
            parking.append(mine)
        else:
            staying.append(turn)
    for marks, ids in among(yielding):
        c.execute(
            "UPDATE edda_instances SET owner = NULL, state = 'runnable', available_at = ?, updated_at = ? "
            f"WHERE id IN {marks}",
            [now, now, *ids],
        )
    _end(c, ending, now)
    kept = _park(c, parking, now) | _look(c, staying)
    kept |= {turn.instance_id for turn in staying if turn.release is not Release.KEEP}
    return {
        turn.instance_id: TurnResult(
            Applied.KEPT if turn.instance_id in kept else Applied.APPLIED,
            instances[turn.instance_id].signals,
            unread.get(turn.instance_id),
        )
        for turn in turns
    }


def _first_unread(c: sqlite3.Connection, turn: Turn) -> EventRow | None:
    unread: Unread | None = turn.unread
    if unread is None or turn.successor is not None or turn.end_state is State.PAUSED:
        return None
    keys = c.execute(
        "SELECT seq FROM edda_event_keys WHERE hash = ? AND addressee = '' AND seq > ? ORDER BY seq",
        (unread.hash, unread.after),
    )
    for (seq,) in keys:
        if seq not in unread.received:
            row = c.execute(f"SELECT {EVENT_COLUMNS} FROM edda_events WHERE seq = ?", (seq,)).fetchone()
            if row is not None:
                return EventRow(*row)
    return None


def _end(c: sqlite3.Connection, turns: Sequence[Turn], now: int) -> None:
    ended = [turn for turn in turns if turn.end_state is not State.PAUSED]
    write(
        c,
        "UPDATE OR FAIL edda_instances SET state = o.column2, output = o.column3, output_type = o.column4, "
        "error = o.column5, ended_at = o.column6, live_key = iif(o.column6 IS NULL, live_key, NULL), owner = NULL, "
        "updated_at = o.column7 FROM (VALUES",
        "(?, ?, ?, ?, ?, ?, ?)",
        [
            (
                turn.instance_id,
                (turn.end_state or State.COMPLETED).value,
                turn.output,
                turn.output_type,
                turn.error,
                None if turn.end_state is State.PAUSED else now,
                now,
            )
            for turn in turns
        ],
        ") o WHERE id = o.column1",
    )
    for marks, ids in among([turn.instance_id for turn in ended]):
        c.execute(f"DELETE FROM edda_waits WHERE instance_id IN {marks}", ids)
    insert_instances(c, (turn.successor for turn in ended if turn.successor is not None), now)


def _park(c: sqlite3.Connection, ids: Sequence[str], now: int) -> set[str]:
    """Let those go that nothing has come for; the ids of the others."""
    kept: set[str] = set()
    for marks, piece in among(ids):
        # What is due already, and is no wait for events, has fired and stays due.
        c.execute(
            "UPDATE edda_waits AS w SET due = 1 - w.due "
            f"WHERE w.instance_id IN {marks} AND (w.due = 0 OR w.kind = 'event') "
            f"AND w.due <> (coalesce(w.deadline <= ?, 0) OR {HAS_EVENT})",
            [*piece, now],
        )
        # "+": not by the index of all that is due.
        quiet = (
            "NOT EXISTS (SELECT 1 FROM edda_waits w WHERE w.instance_id = edda_instances.id AND +w.due = 1)"
        )
        gone = c.execute(
            "UPDATE edda_instances SET owner = NULL, state = 'waiting', updated_at = ? "
            f"WHERE id IN {marks} AND {quiet}",
            [now, *piece],
        )
        if gone.rowcount < len(set(piece)):
            left = c.execute(
                f"SELECT id FROM edda_instances WHERE id IN {marks} AND owner IS NOT NULL", piece
            )
            kept.update(one for (one,) in left)
    return kept


def _look(c: sqlite3.Connection, turns: Sequence[Turn]) -> set[str]:
    """Event waits that were registered and whose owner stays: the ids of those that an event is there for."""
    registered = [(t.instance_id, w.seq) for t in turns for w in t.waits if w.kind is WaitKind.EVENT]
    found: list[tuple[str, int]] = []
    for keys, values in pairs(registered):
        found += c.execute(
            f"SELECT w.instance_id, w.seq FROM {keys} p CROSS JOIN edda_waits w "
            f"ON w.instance_id = p.column1 AND w.seq = p.column2 WHERE {HAS_EVENT}",
            values,
        )
    mark(c, found)
    return {instance for instance, _ in found}
