"""A request to cancel: a wait that is due from the beginning, which only the owner acts upon (one pen)."""

from __future__ import annotations

import sqlalchemy as sa

from edda.storage.core.traits import Traits
from edda.storage.rows import CANCEL_SEQ, ENDED, State, WaitKind
from edda.storage.schema import instances, waits


def request_cancel(
    c: sa.Connection, traits: Traits, instance_id: str, detail: bytes, now: int
) -> tuple[str, State] | None:
    """Insert the wait and signal the instance, under its lock."""
    here = instances.c.id == instance_id
    select = sa.select(instances.c.app, instances.c.state, instances.c.chain).where(here)
    row = c.execute(traits.lock_rows(select)).one_or_none()
    if row is None:
        return None
    state = State(row.state)
    if state in ENDED:
        return row.app, state
    wait = {
        "instance_id": instance_id,
        "seq": CANCEL_SEQ,
        "kind": WaitKind.CANCEL,
        "name": "cancel",
        "chain": row.chain,
        "cursor": 0,
        "skip": 0,
        "due": True,
        "detail": detail,
    }
    traits.insert_ignoring(c, waits, [wait])
    changes: dict[str, object] = {"signals": instances.c.signals + 1, "updated_at": now}
    if state is not State.RUNNING:
        changes |= {"state": State.RUNNABLE, "available_at": now}
    if state is State.PAUSED:
        changes |= {"fence": instances.c.fence + 1, "error": None}
    c.execute(sa.update(instances).where(here).values(**changes))
    return row.app, state


def cancelling(c: sa.Connection, worker: str) -> list[str]:
    """By the owner's index, then by key."""
    wanted = sa.and_(waits.c.instance_id == instances.c.id, waits.c.seq == CANCEL_SEQ)
    select = sa.select(instances.c.id).join(waits, wanted).where(instances.c.owner == worker)
    return list(c.execute(select.order_by(instances.c.id)).scalars())
