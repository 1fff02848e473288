"""Rows on their way out: taken under a lease, settled in one transaction. See ``contract.Storage``.

A row is pending (may be taken), retrying (failed, comes again), parked (behind an unconfirmed row of its ordering key) or dead (for
an operator). Parking moves a blocked key's rows out of the way once, so that taking stays an index look-up.
"""

from __future__ import annotations

import sqlalchemy as sa

from edda.storage.core.traits import Traits
from edda.storage.core.turns import chunked
from edda.storage.rows import OutboxRow, RelayOutcome, TakenRows
from edda.storage.schema import outbox, relay_leases


def take(
    c: sa.Connection,
    traits: Traits,
    destination: str,
    owner: str,
    lease_us: int,
    limit: int,
    max_bytes: int,
    now: int,
) -> TakenRows:
    """Lease first, then rows."""
    others = _lease(c, traits, destination, owner, lease_us, now)
    if others:
        return TakenRows(held=False, lease_us=0, rows=(), next_available_us=others)
    here = outbox.c.destination == destination
    retrying = c.execute(
        sa.select(outbox)
        .where(here, outbox.c.state == "retrying", outbox.c.available_at <= now)
        .order_by(outbox.c.id)
        .limit(limit)
    ).all()
    pending = c.execute(
        sa.select(outbox)
        .where(here, outbox.c.state == "pending")
        .order_by(outbox.c.id)
        .limit(limit - len(retrying))
    ).all()
    blocked = _blocked_keys(c, here, {row.ordering_key for row in pending if row.ordering_key is not None})
    going = {row.ordering_key for row in retrying}
    rows: list[OutboxRow] = []
    behind: list[int] = []
    size = 0
    for row in sorted([*retrying, *pending], key=lambda row: row.id):
        if row.state == "pending" and row.ordering_key in blocked and row.ordering_key not in going:
            behind.append(row.id)
            continue
        size += len(row.data or b"")
        if rows and size > max_bytes:
            break
        rows.append(
            OutboxRow(
                row.id,
                row.type,
                row.source,
                row.event_id,
                row.attributes,
                row.data,
                row.content_type,
                row.ordering_key,
                row.attempts,
                row.created_at,
            )
        )
    for part in chunked(behind):
        c.execute(sa.update(outbox).where(outbox.c.id.in_(part)).values(state="parked"))
    later = c.execute(
        sa.select(sa.func.min(outbox.c.available_at)).where(
            here, outbox.c.state == "retrying", outbox.c.available_at > now
        )
    ).scalar()
    if behind and not rows:
        later = now  # what stands behind the parked rows is to be had at once
    return TakenRows(True, lease_us, tuple(rows), None if later is None else max(0, later - now))


def _lease(c: sa.Connection, traits: Traits, destination: str, owner: str, lease_us: int, now: int) -> int:
    """0: ours now. Else how long another's lease still lasts."""
    traits.insert_ignoring(
        c, relay_leases, [{"destination": destination, "owner": owner, "expires_at": now + lease_us}]
    )
    row = c.execute(
        traits.lock_rows(sa.select(relay_leases).where(relay_leases.c.destination == destination))
    ).one()
    if row.owner != owner and row.expires_at > now:
        return int(row.expires_at - now)
    c.execute(
        sa.update(relay_leases)
        .where(relay_leases.c.destination == destination)
        .values(owner=owner, expires_at=now + lease_us)
    )
    return 0


def _blocked_keys(c: sa.Connection, here: sa.ColumnElement[bool], keys: set[str]) -> set[str]:
    blocked: set[str] = set()
    for part in chunked(sorted(keys)):
        blocked |= set(
            c.execute(
                sa.select(outbox.c.ordering_key)
                .where(here, outbox.c.ordering_key.in_(part), outbox.c.state.in_(("retrying", "dead")))
                .distinct()
            ).scalars()
        )
    return blocked


def settle(
    c: sa.Connection, traits: Traits, destination: str, owner: str, outcome: RelayOutcome, now: int
) -> bool:
    """The results of a round, if the lease is still ours."""
    lease = c.execute(
        traits.lock_rows(sa.select(relay_leases).where(relay_leases.c.destination == destination))
    ).one_or_none()
    if lease is None or lease.owner != owner or lease.expires_at <= now:
        return False
    here = outbox.c.destination == destination
    keys = _keys_of(c, [*outcome.confirmed, *(f[0] for f in outcome.failed), *(d[0] for d in outcome.dead)])
    for part in chunked(outcome.confirmed):
        c.execute(sa.delete(outbox).where(outbox.c.id.in_(part)))
    for row_id, delay_us, reason in outcome.failed:
        c.execute(
            sa.update(outbox)
            .where(outbox.c.id == row_id)
            .values(
                state="retrying", attempts=outbox.c.attempts + 1, available_at=now + delay_us, reason=reason
            )
        )
    for row_id, reason in outcome.dead:
        c.execute(
            sa.update(outbox)
            .where(outbox.c.id == row_id)
            .values(state="dead", attempts=outbox.c.attempts + 1, reason=reason)
        )
    for part in chunked(outcome.parked):
        c.execute(sa.update(outbox).where(outbox.c.id.in_(part)).values(state="parked"))
    _settle_keys(c, here, keys)
    return True


def _keys_of(c: sa.Connection, ids: list[int]) -> set[str]:
    keys: set[str] = set()
    for part in chunked(sorted(ids)):
        keys |= set(
            c.execute(
                sa.select(outbox.c.ordering_key).where(
                    outbox.c.id.in_(part), outbox.c.ordering_key.is_not(None)
                )
            ).scalars()
        )
    return keys


def _settle_keys(c: sa.Connection, here: sa.ColumnElement[bool], keys: set[str]) -> None:
    """A key with a failed row is parked behind it; a key without one flows again."""
    blocked = _blocked_keys(c, here, keys)
    for part in chunked(sorted(keys - blocked)):
        c.execute(
            sa.update(outbox)
            .where(here, outbox.c.ordering_key.in_(part), outbox.c.state == "parked")
            .values(state="pending")
        )
    for part in chunked(sorted(blocked)):
        c.execute(
            sa.update(outbox)
            .where(here, outbox.c.ordering_key.in_(part), outbox.c.state == "pending")
            .values(state="parked")
        )


def release(c: sa.Connection, destination: str, owner: str) -> None:
    """Give the lease back."""
    c.execute(
        sa.delete(relay_leases).where(
            relay_leases.c.destination == destination, relay_leases.c.owner == owner
        )
    )
