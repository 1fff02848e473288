"""Rows on their way out: taken under a lease, settled in one transaction. See ``contract.Storage``.

A row is pending (may be taken), retrying (failed, comes again), parked (behind an unconfirmed row of its ordering key)
or dead (for an operator). Parking moves a blocked key's rows out of the way once, so that taking stays an index
look-up.

Both transactions begin with the lock of the lease's row: no two relays take or settle rows of a destination at a time.
Rows that flushes insert meanwhile are pending, also behind a blocked one of their key; the next take parks these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import sqlalchemy as sa

from edda.storage.core.traits import Traits
from edda.storage.core.values import chunked
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
    candidates = _candidates(c, here, limit, now)
    stuck = _first_stuck(c, here, {row.ordering_key for row in candidates}, now)
    free = [row for row in candidates if row.id < stuck.get(row.ordering_key, row.id + 1)]
    behind = sorted({row.id for row in candidates} - {row.id for row in free})
    for part in chunked(behind):
        c.execute(sa.update(outbox).where(outbox.c.id.in_(part)).values(state="parked"))
    rows = _read(c, _cut(free, max_bytes))
    later = c.execute(
        sa.select(sa.func.min(outbox.c.available_at)).where(
            here, outbox.c.state == "retrying", outbox.c.available_at > now
        )
    ).scalar()
    if behind and not rows:
        later = now  # what stands behind the parked rows is to be had at once
    return TakenRows(True, lease_us, rows, None if later is None else max(0, later - now))


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


def _candidates(c: sa.Connection, here: sa.ColumnElement[bool], limit: int, now: int) -> list[Any]:
    """Retrying rows that are available, then pending ones, in the order of their ids; without what they hold."""
    select = sa.select(outbox.c.id, outbox.c.ordering_key, sa.func.length(outbox.c.data).label("size"))
    select = select.order_by(outbox.c.id)
    retrying = select.where(here, outbox.c.state == "retrying", outbox.c.available_at <= now).limit(limit)
    found = list(c.execute(retrying))
    pending = select.where(here, outbox.c.state == "pending").limit(limit - len(found))
    return sorted([*found, *c.execute(pending)], key=lambda row: int(row.id))


def _first_stuck(
    c: sa.Connection, here: sa.ColumnElement[bool], keys: Iterable[str | None], now: int
) -> dict[str, int]:
    """Of each key the first row that cannot go now: nothing goes behind it."""
    stuck = sa.or_(
        outbox.c.state.in_(("dead", "parked")),
        sa.and_(outbox.c.state == "retrying", outbox.c.available_at > now),
    )
    return _first(c, here, keys, stuck)


def _first(
    c: sa.Connection,
    here: sa.ColumnElement[bool],
    keys: Iterable[str | None],
    which: sa.ColumnElement[bool],
) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in chunked(sorted({key for key in keys if key is not None})):
        rows = c.execute(
            sa.select(outbox.c.ordering_key, sa.func.min(outbox.c.id))
            .where(here, outbox.c.ordering_key.in_(part), which)
            .group_by(outbox.c.ordering_key)
        )
        found.update((key, first) for key, first in rows)
    return found


def _cut(rows: Sequence[Any], max_bytes: int) -> list[int]:
    """Ids of as many as fit, at least one."""
    ids: list[int] = []
    size = 0
    for row in rows:
        size += row.size or 0
        if ids and size > max_bytes:
            break
        ids.append(row.id)
    return ids


def _read(c: sa.Connection, ids: Sequence[int]) -> tuple[OutboxRow, ...]:
    columns = [outbox.c[field.name] for field in fields(OutboxRow)]
    return tuple(
        OutboxRow(*row)
        for part in chunked(ids)
        for row in c.execute(sa.select(*columns).where(outbox.c.id.in_(part)).order_by(outbox.c.id))
    )


# ---------------------------------------------------------------------------------------------- settling


def settle(
    c: sa.Connection, traits: Traits, destination: str, owner: str, outcome: RelayOutcome, now: int
) -> bool:
    """The results of a round, unless another has taken the lease. Settled again, nothing changes.

    A lease that has run out and that nobody took protects as well: taking it needs the lock that we hold.
    """
    lease = c.execute(
        traits.lock_rows(sa.select(relay_leases).where(relay_leases.c.destination == destination))
    ).one_or_none()
    if lease is None or lease.owner != owner:
        return False
    here = outbox.c.destination == destination
    keys = _keys_of(
        c, here, [*outcome.confirmed, *(f[0] for f in outcome.failed), *(d[0] for d in outcome.dead)]
    )
    for part in chunked(outcome.confirmed):
        c.execute(sa.delete(outbox).where(here, outbox.c.id.in_(part)))
    _fail(c, here, outcome, now)
    for part in chunked(outcome.parked):
        c.execute(
            sa.update(outbox)
            .where(here, outbox.c.id.in_(part), outbox.c.state.in_(("pending", "retrying")))
            .values(state="parked")
        )
    _settle_keys(c, here, keys)
    return True


def _fail(c: sa.Connection, here: sa.ColumnElement[bool], outcome: RelayOutcome, now: int) -> None:
    """Failed rows come again, dead ones do not; each failure counts once."""
    row = sa.and_(here, outbox.c.id == sa.bindparam("row"), outbox.c.state != "dead")
    failed = sa.update(outbox).values(reason=sa.bindparam("why"), attempts=outbox.c.attempts + 1)
    if outcome.failed:
        c.execute(
            # A row that was taken was available: one that is retrying later was settled by an earlier try.
            failed.where(row, sa.or_(outbox.c.state != "retrying", outbox.c.available_at <= now)).values(
                state="retrying", available_at=sa.bindparam("at")
            ),
            [{"row": one, "at": now + delay_us, "why": reason} for one, delay_us, reason in outcome.failed],
        )
    if outcome.dead:
        c.execute(
            failed.where(row).values(state="dead"),
            [{"row": one, "why": reason} for one, reason in outcome.dead],
        )


def _keys_of(c: sa.Connection, here: sa.ColumnElement[bool], ids: Sequence[int]) -> set[str]:
    keys: set[str] = set()
    for part in chunked(sorted(ids)):
        select = sa.select(outbox.c.ordering_key).where(
            here, outbox.c.id.in_(part), outbox.c.ordering_key.is_not(None)
        )
        keys |= set(c.execute(select).scalars())
    return keys


def _settle_keys(c: sa.Connection, here: sa.ColumnElement[bool], keys: set[str]) -> None:
    """What stands behind a failed row of its key is parked; what was parked behind a confirmed one flows again."""
    blocked = _first(c, here, keys, outbox.c.state.in_(("retrying", "dead")))
    for part in chunked(sorted(keys - set(blocked))):
        c.execute(
            sa.update(outbox)
            .where(here, outbox.c.ordering_key.in_(part), outbox.c.state == "parked")
            .values(state="pending")
        )
    mine = sa.and_(here, outbox.c.ordering_key == sa.bindparam("key"))
    if blocked:
        rows = [{"key": key, "first": first} for key, first in sorted(blocked.items())]
        c.execute(
            sa.update(outbox)
            .where(mine, outbox.c.state == "pending", outbox.c.id > sa.bindparam("first"))
            .values(state="parked"),
            rows,
        )
        c.execute(
            sa.update(outbox)
            .where(mine, outbox.c.state == "parked", outbox.c.id < sa.bindparam("first"))
            .values(state="pending"),
            rows,
        )


def release(c: sa.Connection, destination: str, owner: str) -> None:
    """Give the lease back."""
    c.execute(
        sa.delete(relay_leases).where(
            relay_leases.c.destination == destination, relay_leases.c.owner == owner
        )
    )
