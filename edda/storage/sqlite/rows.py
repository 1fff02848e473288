"""Rows to write: one place for what flush, accept and cold transactions insert by hand."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from edda.storage.rows import NewInstance, NewWait, OutboxMessage, Record
from edda.storage.sqlite.statements import write

_INSTANCES = (
    "INSERT OR FAIL INTO edda_instances (id, app, workflow, version, state, owner, fence, signals, chain, "
    "chain_started_at, live_key, priority, available_at, recoveries, start_event, parent, parent_seq, created_at, "
    "updated_at, input, carried) VALUES"
)
_INSTANCE = "(?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?)"
_HISTORY = (
    "INSERT OR FAIL INTO edda_history (instance_id, seq, pos, fence, kind, name, args_hash, payload, content_type, "
    "recorded_at) VALUES"
)
_RECORD = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_WAITS = (
    "INSERT OR FAIL INTO edda_waits (instance_id, seq, kind, name, hash, chain, shape_id, cursor, skip, deadline, due, "
    "detail) VALUES"
)
_WAIT = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?)"
_REPLACED = ["kind", "name", "hash", "chain", "shape_id", "cursor", "skip", "deadline", "due", "detail"]
_REPLACE = (
    "ON CONFLICT (instance_id, seq) DO UPDATE SET "
    f"{', '.join(f'{column} = excluded.{column}' for column in _REPLACED)}"
)
_OUTBOX = (
    "INSERT OR FAIL INTO edda_outbox (destination, ordering_key, state, type, source, event_id, attributes, data, "
    "content_type, attempts, available_at, created_at, instance_id) VALUES"
)
_MESSAGE = "(?, ?, 'pending', ?, ?, ?, ?, ?, ?, 0, ?, ?, ?)"


def insert_instances(c: sqlite3.Connection, new: Iterable[NewInstance], now: int) -> int:
    """In this order, so that of two with one live key the first wins; how many were inserted, and not taken already."""
    values = [
        (
            one.id,
            one.app,
            one.workflow,
            one.version,
            "runnable" if one.owner is None else "running",
            one.owner,
            0 if one.owner is None else 1,
            one.chain or one.id,
            now if one.chain_started_at is None else one.chain_started_at,
            one.live_key,
            one.priority,
            now + one.delay_us,
            one.start_event,
            one.parent,
            one.parent_seq,
            now,
            now,
            one.input,
            one.carried,
        )
        for one in new
    ]
    return write(c, _INSTANCES, _INSTANCE, values, "ON CONFLICT DO NOTHING")


def insert_history(c: sqlite3.Connection, records: Iterable[tuple[str, int, Record]], now: int) -> None:
    """(Instance id, fence, record). Raises sqlite3.IntegrityError if one exists already."""
    values = [
        (
            instance,
            record.seq,
            record.pos,
            fence,
            record.kind,
            record.name,
            record.args_hash,
            record.payload,
            record.content_type,
            record.recorded_at or now,
        )
        for instance, fence, record in records
    ]
    write(c, _HISTORY, _RECORD, values)


def register_waits(c: sqlite3.Connection, waits: Iterable[tuple[str, str, NewWait, int]], now: int) -> None:
    """Insert or replace (instance id, chain, wait, cursor), none of them due."""
    values = [
        (
            instance,
            wait.seq,
            wait.kind.value,
            wait.name,
            wait.hash,
            chain,
            wait.shape_id,
            cursor,
            wait.skip,
            wait.deadline_us if wait.delay_us is None else now + wait.delay_us,
            wait.detail,
        )
        for instance, chain, wait, cursor in waits
    ]
    write(c, _WAITS, _WAIT, values, _REPLACE)


def insert_outbox(c: sqlite3.Connection, messages: Sequence[OutboxMessage], now: int) -> None:
    """Pending, their ids in this order."""
    values = [
        (
            message.destination,
            message.ordering_key,
            message.type,
            message.source,
            message.event_id,
            message.attributes,
            message.data,
            message.content_type,
            now,
            now,
            message.instance_id,
        )
        for message in messages
    ]
    write(c, _OUTBOX, _MESSAGE, values)
