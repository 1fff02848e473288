"""Taking and settling outbox rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from edda.storage.memory.tables import Outgoing, Tables, view
from edda.storage.rows import OutboxRow, RelayOutcome


def take(t: Tables, destination: str, limit: int, max_bytes: int) -> tuple[list[OutboxRow], int | None]:
    """The rows to publish, and in how many microseconds the next retry is due."""
    rows = _rows(t, destination)
    later = [one for one, row in rows.items() if row.state == "retrying" and row.available_at > t.now]
    stuck = _first(rows, [*later, *(one for one, row in rows.items() if row.state in {"parked", "dead"})])
    going = [one for one, row in rows.items() if row.state in {"pending", "retrying"} and one not in later]
    candidates = sorted(going, key=lambda one: (rows[one].state == "pending", one))[:limit]
    free = [one for one in candidates if one < stuck.get(rows[one].message.ordering_key, one + 1)]
    for one in set(candidates) - set(free):
        t.outbox[one] = replace(rows[one], state="parked")
    if candidates and not free:
        return [], 0  # what stands behind these is to be had at once
    taken: list[OutboxRow] = []
    size = 0
    for one in sorted(free):
        size += len(rows[one].message.data or b"")
        if taken and size > max_bytes:
            break
        taken.append(view(OutboxRow, rows[one], rows[one].message, id=one))
    return taken, min((rows[one].available_at - t.now for one in later), default=None)


def settle(t: Tables, destination: str, outcome: RelayOutcome) -> None:
    """Rows first, then their keys. What an earlier try has settled is left alone."""
    rows = _rows(t, destination)
    settled = (*outcome.confirmed, *(f[0] for f in outcome.failed), *(d[0] for d in outcome.dead))
    keys = {rows[one].message.ordering_key for one in settled if one in rows} - {None}
    for one in set(outcome.confirmed) & set(rows):
        del t.outbox[one]
    for one, delay_us, reason in outcome.failed:
        # A row that was taken was available: one that comes later was settled already.
        if one in rows and not (rows[one].state == "retrying" and rows[one].available_at > t.now):
            _fail(t, one, "retrying", t.now + delay_us, reason)
    for one, reason in outcome.dead:
        if one in rows:
            _fail(t, one, "dead", t.now, reason)
    for one in outcome.parked:
        if one in rows and rows[one].state in {"pending", "retrying"}:
            t.outbox[one] = replace(rows[one], state="parked")
    _settle_keys(t, destination, keys)


def _settle_keys(t: Tables, destination: str, keys: set[str | None]) -> None:
    """What stands behind a failed row of its key is parked, what does not flows."""
    rows = _rows(t, destination)
    blocked = _first(rows, (one for one, row in rows.items() if row.state in {"retrying", "dead"}))
    for one, row in rows.items():
        key = row.message.ordering_key
        if row.state in {"pending", "parked"} and key in keys:
            t.outbox[one] = replace(row, state="pending" if one < blocked.get(key, one + 1) else "parked")


def _rows(t: Tables, destination: str) -> dict[int, Outgoing]:
    return {one: row for one, row in t.outbox.items() if row.message.destination == destination}


def _first(rows: dict[int, Outgoing], which: Iterable[int]) -> dict[str | None, int]:
    """The first of these rows for each ordering key."""
    first: dict[str | None, int] = {}
    for one in sorted(which):
        if rows[one].message.ordering_key is not None:
            first.setdefault(rows[one].message.ordering_key, one)
    return first


def _fail(t: Tables, one: int, state: str, available_at: int, reason: str) -> None:
    row = t.outbox[one]
    if row.state != "dead":
        t.outbox[one] = replace(
            row, state=state, attempts=row.attempts + 1, available_at=available_at, reason=reason
        )
