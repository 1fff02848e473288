"""Who sweeps, for how long, and what apps keep. See ``contract.Storage``; what is swept is in ``expired.py``.

A sweep is a row with the next number: of two that begin at once the key refuses one. Each of its chunks renews the row
first, so that one that was stopped finds, when it wakes, that it has no right any more.
"""

from __future__ import annotations

from dataclasses import asdict, fields

import sqlalchemy as sa

from edda.storage.core import expired
from edda.storage.core.traits import Traits
from edda.storage.rows import Chunk, Expiring, Keeps, Sweep, SweepRow, Swept
from edda.storage.schema import accept, retention, sweeps

_REMOVES = {
    Expiring.EVENTS: (expired.events, sweeps.c.events),
    Expiring.IDENTITIES: (expired.identities, sweeps.c.identities),
    Expiring.INSTANCES: (expired.instances_and_histories, sweeps.c.instances),
    Expiring.LETTERS: (expired.letters, sweeps.c.dead_letters),
    Expiring.DEAD_ROWS: (expired.dead_rows, sweeps.c.dead_letters),
}


def declare(c: sa.Connection, traits: Traits, app: str, keeps: Keeps | None, now: int) -> None:
    """What an app keeps from now on; None: there is no such app any more."""
    if keeps is None:
        c.execute(sa.delete(retention).where(retention.c.app == app))
        return
    row = {**asdict(keeps), "declared_at": now}
    traits.insert_ignoring(c, retention, [{"app": app, **row}])
    c.execute(sa.update(retention).where(retention.c.app == app).values(**row))


def declared(c: sa.Connection) -> dict[str, Keeps]:
    """What each app keeps."""
    names = [field.name for field in fields(Keeps)]
    rows = c.execute(sa.select(retention).order_by(retention.c.app))
    return {row.app: Keeps(*(getattr(row, name) for name in names)) for row in rows}


# ---------------------------------------------------------------------------------------------- the right to sweep


def begin(
    c: sa.Connection, traits: Traits, owner: str, lease_us: int, every_us: int, now: int
) -> Sweep | None:
    """The next number, if it is time and nobody else sweeps."""
    last = c.execute(sa.select(sweeps).order_by(sweeps.c.id.desc()).limit(1)).one_or_none()
    if last is not None and last.ended_at is None and last.expires_at > now:
        return Sweep(last.id, owner) if last.owner == owner else None
    if last is not None and last.ended_at is not None and now < last.began_at + every_us:
        return None
    if last is not None and last.ended_at is None and not _take_over(c, last.id, now):
        return None
    # Read after the time was: whatever has a number up to this one was accepted before ``began_at``.
    mark = c.execute(sa.select(accept.c.last_seq, accept.c.last_accepted_at).where(accept.c.id == 1)).one()
    number = 1 if last is None else last.id + 1
    row = {
        "id": number,
        "owner": owner,
        "began_at": max(now, mark.last_accepted_at),
        "expires_at": now + lease_us,
        "last_seq": mark.last_seq,
        **dict.fromkeys(("events", "identities", "instances", "dead_letters"), 0),
    }
    traits.insert_ignoring(c, sweeps, [row])
    taken = c.execute(sa.select(sweeps.c.owner).where(sweeps.c.id == number)).scalar_one()
    return Sweep(number, owner) if taken == owner else None


def _take_over(c: sa.Connection, number: int, now: int) -> bool:
    """End a sweep that died. False: it lives, and was in the middle of a chunk, for which this has waited."""
    died = sa.and_(sweeps.c.id == number, sweeps.c.ended_at.is_(None), sweeps.c.expires_at <= now)
    return bool(c.execute(sa.update(sweeps).where(died).values(ended_at=now)).rowcount)


def chunk(
    c: sa.Connection, traits: Traits, sweep: Sweep | None, wanted: Chunk, lease_us: int, now: int
) -> Swept | None:
    """The right first, under whose lock the rest is done."""
    remove, column = _REMOVES[wanted.what]
    if sweep is None:
        return remove(c, traits, wanted)
    mine = sa.and_(sweeps.c.id == sweep.id, sweeps.c.owner == sweep.owner)
    renewed = (
        sa.update(sweeps)
        .where(mine, sweeps.c.ended_at.is_(None), sweeps.c.expires_at > now)
        .values(expires_at=now + lease_us)
    )
    if not c.execute(renewed).rowcount:
        return None
    swept = remove(c, traits, wanted)
    if swept.removed and not wanted.dry_run:
        c.execute(sa.update(sweeps).where(mine).values({column: column + swept.removed}))
    return swept


def end(c: sa.Connection, sweep: Sweep, forget_us: int, now: int) -> None:
    """The newest of those to be forgotten stays: it says which identities are as old as that."""
    mine = sa.and_(sweeps.c.id == sweep.id, sweeps.c.owner == sweep.owner, sweeps.c.ended_at.is_(None))
    c.execute(sa.update(sweeps).where(mine).values(ended_at=now))
    old = sa.select(sa.func.max(sweeps.c.id)).where(sweeps.c.began_at <= now - forget_us)
    newest = c.execute(old).scalar()
    if newest is not None:
        c.execute(sa.delete(sweeps).where(sweeps.c.id < newest))


def last_sweeps(c: sa.Connection, limit: int) -> list[SweepRow]:
    """The newest first."""
    columns = [sweeps.c[field.name] for field in fields(SweepRow)]
    rows = c.execute(sa.select(*columns).order_by(sweeps.c.id.desc()).limit(limit))
    return [SweepRow(*row) for row in rows]
