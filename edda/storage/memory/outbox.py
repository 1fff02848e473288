"""Taking and settling outbox rows."""

from __future__ import annotations

from dataclasses import replace

from edda.storage.memory.tables import Outgoing, Tables, view
from edda.storage.rows import OutboxRow, RelayOutcome


def take(t: Tables, destination: str, limit: int, max_bytes: int) -> tuple[list[OutboxRow], int | None]:
    """The rows to publish, and in how many microseconds the next retry is due."""
    rows = _rows(t, destination)
    later = [row for row in rows.values() if row.state == "retrying" and row.available_at > t.now]
    blocked = {row.message.ordering_key for row in rows.values() if row.state == "dead" or row in later}
    again = [one for one, row in rows.items() if row.state == "retrying" and row not in later]
    free = []
    for one, row in rows.items():
        if row.state == "pending" and row.message.ordering_key in blocked - {None}:
            t.outbox[one] = replace(row, state="parked")
        elif row.state == "pending":
            free.append(one)
    taken: list[OutboxRow] = []
    size = 0
    for one in sorted([*again, *free][:limit]):
        size += len(rows[one].message.data or b"")
        if taken and size > max_bytes:
            break
        taken.append(view(OutboxRow, rows[one], rows[one].message, id=one))
    return taken, min((row.available_at - t.now for row in later), default=None)


def settle(t: Tables, destination: str, outcome: RelayOutcome) -> None:
    """Rows first, then their keys."""
    keys = set()
    for one in (*outcome.confirmed, *(f[0] for f in outcome.failed), *(d[0] for d in outcome.dead)):
        keys.add(t.outbox[one].message.ordering_key if one in t.outbox else None)
    for one in outcome.confirmed:
        t.outbox.pop(one, None)
    for one, delay_us, reason in outcome.failed:
        _failed(t, one, "retrying", t.now + delay_us, reason)
    for one, reason in outcome.dead:
        _failed(t, one, "dead", t.now, reason)
    for one in outcome.parked:
        if one in t.outbox:
            t.outbox[one] = replace(t.outbox[one], state="parked")
    rows = _rows(t, destination)
    blocked = {row.message.ordering_key for row in rows.values() if row.state in {"retrying", "dead"}}
    for one, row in rows.items():
        if row.state in {"pending", "parked"} and row.message.ordering_key in keys - {None}:
            state = "parked" if row.message.ordering_key in blocked else "pending"
            t.outbox[one] = replace(row, state=state)


def _rows(t: Tables, destination: str) -> dict[int, Outgoing]:
    return {one: row for one, row in t.outbox.items() if row.message.destination == destination}


def _failed(t: Tables, one: int, state: str, available_at: int, reason: str) -> None:
    row = t.outbox.get(one)
    if row is not None:
        t.outbox[one] = replace(
            row, state=state, attempts=row.attempts + 1, available_at=available_at, reason=reason
        )
