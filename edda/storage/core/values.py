"""Rows of the contract as values of the tables, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from edda.storage.rows import EventRow, NewInstance, OutboxMessage, Record, State

T = TypeVar("T")

#: Parameters per statement stay far below every database's limit.
CHUNK = 500


def chunked(items: Sequence[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    """Pieces of a list."""
    return (items[at : at + size] for at in range(0, len(items), size))


def instance_values(new: NewInstance, now: int) -> dict[str, Any]:
    """The row of a new instance."""
    owned = new.owner is not None
    return {
        "id": new.id,
        "app": new.app,
        "workflow": new.workflow,
        "version": new.version,
        "state": State.RUNNING if owned else State.RUNNABLE,
        "owner": new.owner,
        "fence": 1 if owned else 0,
        "signals": 0,
        "chain": new.chain or new.id,
        "chain_started_at": now if new.chain_started_at is None else new.chain_started_at,
        "live_key": new.live_key,
        "priority": new.priority,
        "available_at": now + new.delay_us,
        "recoveries": 0,
        "start_event": new.start_event,
        "parent": new.parent,
        "parent_seq": new.parent_seq,
        "created_at": now,
        "updated_at": now,
        "ended_at": None,
        "input": new.input,
        "carried": new.carried,
        "output": None,
        "output_type": None,
        "error": None,
    }


def record_values(instance_id: str, fence: int, record: Record, now: int) -> dict[str, Any]:
    """The row of a record."""
    return {
        "instance_id": instance_id,
        "seq": record.seq,
        "pos": record.pos,
        "fence": fence,
        "kind": record.kind,
        "name": record.name,
        "args_hash": record.args_hash,
        "payload": record.payload,
        "content_type": record.content_type,
        "recorded_at": record.recorded_at or now,
    }


def record_of(row: Any) -> Record:
    """A record from its table."""
    return Record(
        row.seq, row.pos, row.kind, row.name, row.payload, row.content_type, row.args_hash, row.recorded_at
    )


def outbox_values(message: OutboxMessage, now: int) -> dict[str, Any]:
    """The row of an event on its way out."""
    return {
        "destination": message.destination,
        "ordering_key": message.ordering_key,
        "state": "pending",
        "type": message.type,
        "source": message.source,
        "event_id": message.event_id,
        "attributes": message.attributes,
        "data": message.data,
        "content_type": message.content_type,
        "attempts": 0,
        "available_at": now,
        "created_at": now,
        "instance_id": message.instance_id,
        "reason": None,
    }


def event_row(row: Any) -> EventRow:
    """An event from its table."""
    return EventRow(
        row.seq,
        row.type,
        row.source,
        row.event_id,
        row.attributes,
        row.data,
        row.content_type,
        row.addressee,
        row.accepted_at,
    )
