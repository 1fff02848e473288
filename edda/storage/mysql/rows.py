"""Rows to write, as values in the order of their INSERT; one place for what flush, accept and the core insert."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from edda.storage.mysql.statements import Rendered, Value, insert
from edda.storage.rows import NewInstance, NewWait, OutboxMessage, Record

_INSTANCES = (
    "INSERT INTO edda_instances (id, app, workflow, version, state, owner, fence, signals, chain, chain_started_at, "
    "live_key, priority, available_at, recoveries, start_event, parent, parent_seq, created_at, updated_at, input, "
    "carried) VALUES"
)
_INSTANCE = (
    "(%s, %s, %s, %s, %s, %s, %s, 0, %s, COALESCE(%s, @edda_now), %s, %s, @edda_now + %s, 0, %s, %s, %s, "
    "@edda_now, @edda_now, %s, %s)"
)
_HISTORY = (
    "INSERT INTO edda_history (instance_id, seq, pos, fence, kind, name, args_hash, payload, content_type, "
    "recorded_at) VALUES"
)
_RECORD = "(%s, %s, %s, %s, %s, %s, %s, %s, %s, COALESCE(%s, @edda_now))"
# REPLACE, because an update of what exists would need VALUES() on MariaDB, which MySQL warns of.
_WAITS = (
    "REPLACE INTO edda_waits (instance_id, seq, kind, name, hash, chain, shape_id, `cursor`, skip, deadline, due, "
    "detail) VALUES"
)
_WAIT = "(%s, %s, %s, %s, %s, %s, %s, %s, %s, COALESCE(@edda_now + %s, %s), 0, %s)"
_OUTBOX = (
    "INSERT INTO edda_outbox (destination, ordering_key, state, type, source, event_id, attributes, data, "
    "content_type, attempts, available_at, created_at, instance_id) VALUES"
)
_MESSAGE = "(%s, %s, 'pending', %s, %s, %s, %s, %s, %s, 0, @edda_now, @edda_now, %s)"


def instances(new_ones: Iterable[NewInstance], max_bytes: int) -> Iterator[Rendered]:
    """Insert in id order; where id or live_key is taken nothing happens."""
    values = (
        (
            new.id,
            new.app,
            new.workflow,
            new.version,
            "runnable" if new.owner is None else "running",
            new.owner,
            0 if new.owner is None else 1,
            new.chain or new.id,
            new.chain_started_at,
            new.live_key,
            new.priority,
            new.delay_us,
            new.start_event,
            new.parent,
            new.parent_seq,
            new.input,
            new.carried,
        )
        for new in sorted(new_ones, key=lambda new: new.id)
    )
    return insert(_INSTANCES, _INSTANCE, values, max_bytes, "ON DUPLICATE KEY UPDATE id = id")


def history(rows: Iterable[tuple[str, int, Record]], max_bytes: int) -> Iterator[Rendered]:
    """Insert (instance id, fence, record)."""
    values = (
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
            record.recorded_at or None,
        )
        for instance, fence, record in rows
    )
    return insert(_HISTORY, _RECORD, values, max_bytes)


def waits(rows: Iterable[tuple[str, bytes, NewWait, int]], max_bytes: int) -> Iterator[Rendered]:
    """Insert or replace (instance id, chain, wait, cursor), none of them due."""
    values = (
        (
            instance,
            wait.seq,
            wait.kind,
            wait.name,
            wait.hash,
            chain,
            wait.shape_id,
            cursor,
            wait.skip,
            wait.delay_us,
            wait.deadline_us,
            wait.detail,
        )
        for instance, chain, wait, cursor in rows
    )
    return insert(_WAITS, _WAIT, values, max_bytes)


def outbox(messages: Sequence[OutboxMessage], max_bytes: int) -> Iterator[Rendered]:
    """Insert pending outbox rows, their ids in this order."""
    values: Iterator[tuple[Value, ...]] = (
        (
            message.destination,
            message.ordering_key,
            message.type,
            message.source,
            message.event_id,
            message.attributes,
            message.data,
            message.content_type,
            message.instance_id,
        )
        for message in messages
    )
    return insert(_OUTBOX, _MESSAGE, values, max_bytes)
