"""Workers and leases: who is alive, whose instances go back. The fence rises at every change of owner."""

from __future__ import annotations

import sqlalchemy as sa

from edda.storage.core.traits import Traits
from edda.storage.rows import Beat, State
from edda.storage.schema import instances, outbox, waits, workers


def register_worker(c: sa.Connection, worker: str, app: str, lease_us: int, now: int) -> None:
    """A new process."""
    c.execute(
        sa.insert(workers).values(id=worker, app=app, started_at=now, expires_at=now + lease_us, dead=False)
    )


def renew(c: sa.Connection, worker: str, lease_us: int, now: int) -> bool:
    """False: declared dead, or never registered."""
    done = c.execute(
        sa.update(workers).where(workers.c.id == worker, ~workers.c.dead).values(expires_at=now + lease_us)
    )
    return bool(done.rowcount)


def look_around(c: sa.Connection, worker: str | None, app: str, now: int, *, alive: bool) -> Beat:
    """What waits for somebody: one select of index look-ups."""
    mine = instances.c.app == app
    runnable = instances.c.state == State.RUNNABLE
    row = c.execute(
        sa.select(
            sa.select(sa.func.min(workers.c.expires_at))
            .where(~workers.c.dead, workers.c.id != (worker or ""))
            .scalar_subquery()
            .label("expiry"),
            sa.select(sa.func.min(waits.c.deadline))
            .where(~waits.c.due, waits.c.deadline.is_not(None))
            .scalar_subquery()
            .label("deadline"),
            sa.exists(sa.select(1).where(runnable, mine, instances.c.available_at <= now)).label("runnable"),
            sa.select(sa.func.min(instances.c.available_at))
            .where(runnable, mine, instances.c.available_at > now)
            .scalar_subquery()
            .label("available"),
            sa.exists(
                sa.select(1).where(
                    sa.or_(
                        outbox.c.state == "pending",
                        sa.and_(outbox.c.state == "retrying", outbox.c.available_at <= now),
                    )
                )
            ).label("outbox"),
        )
    ).one()
    return Beat(alive, now, row.expiry, row.deadline, bool(row.runnable), bool(row.outbox), row.available)


def retire_worker(c: sa.Connection, traits: Traits, worker: str, now: int) -> int:
    """Clean shutdown."""
    c.execute(sa.update(workers).where(workers.c.id == worker).values(dead=True))
    ids = _lock_owned(c, traits, [worker], None)
    _give_back(c, ids, now, recovered=False)
    c.execute(sa.delete(workers).where(workers.c.id == worker))
    return len(ids)


def requeue_expired(c: sa.Connection, traits: Traits, limit: int, now: int) -> tuple[frozenset[str], int]:
    """Declare dead first: a late heartbeat finds itself dead; then, in the same transaction, re-queue."""
    c.execute(sa.update(workers).where(~workers.c.dead, workers.c.expires_at < now).values(dead=True))
    dead = list(c.execute(sa.select(workers.c.id).where(workers.c.dead)).scalars())
    if not dead:
        return frozenset(), 0
    ids = _lock_owned(c, traits, dead, limit)
    apps = frozenset(
        c.execute(sa.select(instances.c.app).where(instances.c.id.in_(ids)).distinct()).scalars()
        if ids
        else ()
    )
    _give_back(c, ids, now, recovered=True)
    if len(ids) < limit:
        c.execute(
            sa.delete(workers).where(
                workers.c.dead, workers.c.id.in_(dead), workers.c.expires_at < now - 3_600_000_000
            )
        )
    return apps, len(ids)


def _lock_owned(c: sa.Connection, traits: Traits, owners: list[str], limit: int | None) -> list[str]:
    select = (
        sa.select(instances.c.id).where(instances.c.owner.in_(owners)).order_by(instances.c.id).limit(limit)
    )
    return list(c.execute(traits.lock_rows(select)).scalars())


def _give_back(c: sa.Connection, ids: list[str], now: int, *, recovered: bool) -> None:
    if ids:
        c.execute(
            sa.update(instances)
            .where(instances.c.id.in_(ids))
            .values(
                owner=None,
                state=State.RUNNABLE,
                fence=instances.c.fence + 1,
                available_at=now,
                updated_at=now,
                recoveries=instances.c.recoveries + (1 if recovered else 0),
            )
        )
