"""Workers and leases: who is alive, whose instances go back. The fence rises at every change of owner."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from edda.storage.core.traits import Traits
from edda.storage.core.values import chunked
from edda.storage.rows import State
from edda.storage.schema import instances, workers

#: Dead workers without instances are kept for this long, so that a late heartbeat finds itself dead.
OLD_US = 3_600_000_000


def register_worker(c: sa.Connection, traits: Traits, worker: str, app: str, lease_us: int, now: int) -> None:
    """A new process. Registered again after an unknown commit, its lease begins again; a dead one stays dead."""
    traits.insert_ignoring(
        c,
        workers,
        [{"id": worker, "app": app, "started_at": now, "expires_at": now + lease_us, "dead": False}],
    )
    renew(c, worker, lease_us, now)


def renew(c: sa.Connection, worker: str, lease_us: int, now: int) -> bool:
    """False: declared dead, or never registered."""
    done = c.execute(
        sa.update(workers).where(workers.c.id == worker, ~workers.c.dead).values(expires_at=now + lease_us)
    )
    return bool(done.rowcount)


def retire_worker(c: sa.Connection, traits: Traits, worker: str, now: int) -> int:
    """Clean shutdown."""
    c.execute(sa.update(workers).where(workers.c.id == worker).values(dead=True))
    given_back, _ = _give_back(c, traits, [worker], None, now, recovered=False)
    # A worker without a row is dead, too.
    c.execute(sa.delete(workers).where(workers.c.id == worker))
    return given_back


def requeue_expired(c: sa.Connection, traits: Traits, limit: int, now: int) -> tuple[frozenset[str], int]:
    """Declare dead first: a late heartbeat finds itself dead; then, in the same transaction, re-queue."""
    expired = sa.and_(~workers.c.dead, workers.c.expires_at < now)
    # Found without locks, then locked by id, as a renewal does: an update by way of the expiry's index would lock the
    # index before the row, and deadlock with renewals on InnoDB again and again.
    found = c.execute(sa.select(workers.c.id).where(expired).order_by(workers.c.id)).scalars()
    for part in chunked(list(found)):
        select = sa.select(workers.c.id).where(workers.c.id.in_(part), expired).order_by(workers.c.id)
        locked = list(c.execute(traits.lock_rows(select)).scalars())
        if locked:
            c.execute(sa.update(workers).where(workers.c.id.in_(locked)).values(dead=True))
    dead = list(c.execute(sa.select(workers.c.id).where(workers.c.dead)).scalars())
    requeued, apps = _give_back(c, traits, dead, limit, now, recovered=True)
    theirs = sa.exists(sa.select(1).where(instances.c.owner == workers.c.id).correlate(workers))
    old = sa.select(workers.c.id).where(workers.c.dead, workers.c.expires_at < now - OLD_US, ~theirs)
    for part in chunked(list(c.execute(old.order_by(workers.c.id)).scalars())):
        c.execute(sa.delete(workers).where(workers.c.id.in_(part)))
    return frozenset(apps), requeued


def _give_back(
    c: sa.Connection, traits: Traits, owners: Sequence[str], limit: int | None, now: int, *, recovered: bool
) -> tuple[int, set[str]]:
    """Make what these own runnable under a raised fence; how many, and their apps."""
    if not owners:
        return 0, set()
    theirs = instances.c.owner.in_(owners)
    # Found without locks, then locked by id, in the order in which everybody locks, and looked at again: what has
    # another owner by then is left alone.
    found = c.execute(sa.select(instances.c.id).where(theirs).order_by(instances.c.id).limit(limit)).scalars()
    apps: set[str] = set()
    count = 0
    for part in chunked(list(found)):
        select = sa.select(instances.c.id, instances.c.app).where(instances.c.id.in_(part), theirs)
        locked = c.execute(traits.lock_rows(select.order_by(instances.c.id))).all()
        if not locked:
            continue
        c.execute(
            sa.update(instances)
            .where(instances.c.id.in_([row.id for row in locked]))
            .values(
                owner=None,
                state=State.RUNNABLE,
                fence=instances.c.fence + 1,
                available_at=now,
                updated_at=now,
                recoveries=instances.c.recoveries + (1 if recovered else 0),
            )
        )
        apps |= {row.app for row in locked}
        count += len(locked)
    return count, apps


def resume(c: sa.Connection, traits: Traits, instance_id: str, now: int) -> str | None:
    """A paused instance goes on; its app, or None if it is not paused."""
    here = instances.c.id == instance_id
    select = sa.select(instances.c.app).where(here, instances.c.state == State.PAUSED)
    app: str | None = c.execute(traits.lock_rows(select)).scalar()
    if app is not None:
        c.execute(
            sa.update(instances)
            .where(here)
            .values(
                state=State.RUNNABLE,
                fence=instances.c.fence + 1,
                error=None,
                available_at=now,
                updated_at=now,
            )
        )
    return app
