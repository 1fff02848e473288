"""Which waits have an unreceived event, and marking them due: what cold transactions wake."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from edda.storage.core.traits import Traits
from edda.storage.core.values import chunked
from edda.storage.rows import ENDED, LEFT_AFTER_US, State, WaitKind
from edda.storage.schema import event_keys, instances, shapes, unmarked, waits

_key = event_keys.alias("k")
_shape = shapes.alias("s")

#: Whether the wait's shape is ready (no shape: it is).
shape_ready = ~sa.exists(
    sa.select(1).where(_shape.c.id == waits.c.shape_id, ~_shape.c.ready).correlate(waits)
)


def _unreceived(addressee: sa.ColumnElement[str]) -> sa.Exists:
    return sa.exists(
        sa.select(1)
        .where(
            _key.c.hash == waits.c.hash,
            _key.c.addressee == addressee,
            _key.c.seq > waits.c.cursor,
            _key.c.seq != waits.c.skip,
        )
        .correlate(waits)
    )


#: Whether an event wait has an unreceived event, addressed to nobody or to its chain.
has_event = sa.and_(
    waits.c.kind == WaitKind.EVENT,
    shape_ready,
    sa.or_(_unreceived(sa.literal("", _key.c.addressee.type)), _unreceived(waits.c.chain)),
)


def signal(c: sa.Connection, traits: Traits, due: Sequence[tuple[str, int]], now: int) -> set[str]:
    """Mark these waits (instance, seq) due under their instances' locks, taken in id order; the apps to tell."""
    seqs: dict[str, list[int]] = {}
    for instance_id, seq in due:
        seqs.setdefault(instance_id, []).append(seq)
    apps: set[str] = set()
    for part in chunked(sorted(seqs)):
        select = sa.select(instances.c.id, instances.c.app, instances.c.state).where(instances.c.id.in_(part))
        locked = c.execute(traits.lock_rows(select.order_by(instances.c.id))).all()
        alive = [row for row in locked if row.state not in ENDED]
        apps |= {row.app for row in alive}
        _mark(c, [(row.id, seq) for row in alive for seq in seqs[row.id]])
        _signal(c, [row.id for row in alive if row.state != State.WAITING], {})
        runnable = {"state": State.RUNNABLE, "available_at": now, "updated_at": now}
        _signal(c, [row.id for row in alive if row.state == State.WAITING], runnable)
    return apps


def _mark(c: sa.Connection, due: Sequence[tuple[str, int]]) -> None:
    if due:
        here = sa.and_(waits.c.instance_id == sa.bindparam("i"), waits.c.seq == sa.bindparam("s"))
        c.execute(sa.update(waits).where(here).values(due=True), [{"i": i, "s": s} for i, s in due])


def _signal(c: sa.Connection, ids: Sequence[str], values: dict[str, object]) -> None:
    if ids:
        here = sa.update(instances).where(instances.c.id.in_(ids))
        c.execute(here.values(signals=instances.c.signals + 1, **values))


def left_unmarked(c: sa.Connection, limit: int, now: int) -> list[bytes]:
    """Hashes for which an accept left waits to be marked some time ago, the oldest first."""
    old = sa.select(unmarked.c.hash).where(unmarked.c.created_at <= now - LEFT_AFTER_US)
    found = c.execute(old.order_by(unmarked.c.created_at).limit(limit)).scalars()
    return list(dict.fromkeys(found))
