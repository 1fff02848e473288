"""What has expired, chunk by chunk; never what something live refers to. See ``contract.Storage.sweep``.

Each function walks its table by an index in the order of age, behind where the last chunk ended: what is kept is not
looked at again in the same sweep.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Any

import sqlalchemy as sa

from edda.storage.core.letters import discard
from edda.storage.core.traits import Traits
from edda.storage.core.values import chunked
from edda.storage.rows import Chunk, Swept, WaitKind
from edda.storage.schema import (
    dead_letters,
    event_keys,
    history,
    instances,
    outbox,
    shapes,
    sweeps,
    unmarked,
    waits,
)
from edda.storage.schema import events as accepted
from edda.storage.schema import identities as known

#: Most instances to look through for what they may still receive. With more, work has piled up, and events can wait.
MOST_BUSY = 20_000

#: Most records of one transaction, if no single instance has more.
MOST_RECORDS = 5_000

#: Dead rows of the outbox are discarded one by one, each under its destination's lease.
_ROWS = 100


def _end_of(page: Sequence[Any], limit: int, *columns: str) -> tuple[int, str] | None:
    """Where the next chunk begins; None behind a page that is not full."""
    if len(page) < limit:
        return None
    first, second = (*(getattr(page[-1], name) for name in columns), "")[:2]
    return int(first), str(second)


# ---------------------------------------------------------------------------------------------- events


def events(c: sa.Connection, traits: Traits, chunk: Chunk) -> Swept:
    """Events and their keys."""
    at, seq = chunk.after[0], int(chunk.after[1] or 0)
    page = c.execute(
        sa.select(accepted.c.accepted_at, accepted.c.seq)
        .where(
            accepted.c.accepted_at < chunk.before,
            accepted.c.accepted_at >= at,
            sa.or_(accepted.c.accepted_at > at, accepted.c.seq > seq),
        )
        .order_by(accepted.c.accepted_at, accepted.c.seq)
        .limit(chunk.limit)
    ).all()
    if not page:
        return Swept(0, 0, None)
    # Locked before their keys are read: a backfill locks them, too, so that no key appears behind our back.
    locked: dict[int, str | None] = {}
    for part in chunked([row.seq for row in page]):
        select = sa.select(accepted.c.seq, accepted.c.addressee).where(accepted.c.seq.in_(part))
        select = select.order_by(accepted.c.seq)
        rows = c.execute(select if chunk.dry_run else traits.lock_rows(select))
        locked |= {row.seq: row.addressee for row in rows}
    keys: list[Any] = []
    for part in chunked(sorted(locked)):
        of_these = event_keys.c.seq.in_(part)
        keys += c.execute(
            sa.select(event_keys.c.seq, event_keys.c.hash, event_keys.c.addressee).where(of_these)
        )
    wanted = _wanted(c, keys, max(locked, default=0))
    if wanted is None:
        return Swept(0, len(page), None, postponed=True)
    live = _live_chains(c, {addressee for addressee in locked.values() if addressee is not None})
    wanted |= {seq for seq, addressee in locked.items() if addressee in live}
    gone = sorted(locked.keys() - wanted)
    for part in chunked(gone if not chunk.dry_run else []):
        c.execute(sa.delete(event_keys).where(event_keys.c.seq.in_(part)))
        c.execute(sa.delete(accepted).where(accepted.c.seq.in_(part)))
    return Swept(len(gone), len(page) - len(gone), _end_of(page, chunk.limit, "accepted_at", "seq"))


def _wanted(c: sa.Connection, keys: Sequence[Any], last: int) -> set[int] | None:
    """Those with a key by which something live may still receive them; None: too much waits to be looked through."""
    if not keys:
        return set()
    filling = sa.exists(sa.select(1).where(waits.c.shape_id == shapes.c.id, ~waits.c.due))
    if c.execute(sa.select(shapes.c.id).where(~shapes.c.ready, filling).limit(1)).first() is not None:
        return None
    # What is left to be marked before who is busy: when the mark is made, one of the two looks sees it.
    held: set[bytes] = set()
    for part in chunked(sorted({key.hash for key in keys})):
        held |= set(c.execute(sa.select(unmarked.c.hash).where(unmarked.c.hash.in_(part))).scalars())
        live = sa.select(instances.c.live_key).where(instances.c.live_key.in_(part))
        held |= set(c.execute(live).scalars())
    busy = _busy(c)
    if len(busy) > MOST_BUSY:
        return None
    by_hash: dict[bytes, list[Any]] = defaultdict(list)
    for wait in _waits_before(c, busy, last):
        by_hash[wait.hash].append(wait)
    return {
        key.seq for key in keys if key.hash in held or any(_sees(w, key) for w in by_hash.get(key.hash, ()))
    }


def _busy(c: sa.Connection) -> list[str]:
    """Instances that are not at rest: in one statement, that none changes its state between two.

    One that waits has received all that it could: it parked when there was nothing left, and what came since has made
    it runnable.
    """
    # Constants, and not parameters: else no plan may use the indexes of just these rows.
    runnable = instances.c.state == sa.literal_column("'runnable'")
    paused = instances.c.state == sa.literal_column("'paused'")
    each = [
        sa.select(instances.c.id).where(one) for one in (runnable, instances.c.owner.is_not(None), paused)
    ]
    busy = sa.union_all(*each).subquery()
    return sorted(c.execute(sa.select(busy.c.id).limit(MOST_BUSY + 1)).scalars())


def _waits_before(c: sa.Connection, busy: Sequence[str], last: int) -> Iterator[Any]:
    """Their event waits that may see events up to this one."""
    for part in chunked(busy):
        yield from c.execute(
            sa.select(waits.c.hash, waits.c.chain, waits.c.cursor, waits.c.skip).where(
                waits.c.instance_id.in_(part), waits.c.kind == WaitKind.EVENT, waits.c.cursor < last
            )
        )


def _sees(wait: Any, key: Any) -> bool:
    fits = key.addressee in {"", wait.chain}
    return bool(fits and key.seq > wait.cursor and key.seq != wait.skip)


def _live_chains(c: sa.Connection, chains: Collection[str]) -> set[str]:
    """Those of these chains of which a run lives."""
    live = _live(c, chains)
    for part in chunked(sorted(chains)):
        later = sa.and_(instances.c.chain.in_(part), instances.c.chain != instances.c.id)
        alive = sa.select(instances.c.chain).where(later, instances.c.ended_at.is_(None))
        live |= set(c.execute(alive.distinct()).scalars())
    return live


# ---------------------------------------------------------------------------------------------- identities


def identities(c: sa.Connection, traits: Traits, chunk: Chunk) -> Swept:
    """By accept sequence; how old that is, the sweeps of that time say."""
    del traits
    until = c.execute(
        sa.select(sa.func.max(sweeps.c.last_seq)).where(sweeps.c.began_at <= chunk.before)
    ).scalar()
    page = c.execute(
        sa.select(known.c.seq, known.c.digest)
        .where(known.c.seq > chunk.after[0], known.c.seq <= (until or 0))
        .order_by(known.c.seq)
        .limit(chunk.limit)
    ).all()
    there: set[int] = set()
    for part in chunked([row.seq for row in page]):
        there |= set(c.execute(sa.select(accepted.c.seq).where(accepted.c.seq.in_(part))).scalars())
    # By digest, the order in which accepts take them.
    gone = sorted(row.digest for row in page if row.seq not in there)
    for part in chunked(gone if not chunk.dry_run else []):
        c.execute(sa.delete(known).where(known.c.digest.in_(part)))
    return Swept(len(gone), len(page) - len(gone), _end_of(page, chunk.limit, "seq"))


# ---------------------------------------------------------------------------------------------- instances


def instances_and_histories(c: sa.Connection, traits: Traits, chunk: Chunk) -> Swept:
    """Ended instances, each with all of its history.

    By the time they were created, before which none has ended: an index by the end would cost every end, and this costs
    a look at what is old and lives, once a sweep.
    """
    before = dict(chunk.apps)
    at, last = chunk.after
    columns = (instances.c.created_at, instances.c.id, instances.c.app, instances.c.ended_at)
    page = c.execute(
        sa.select(*columns, instances.c.chain, instances.c.parent)
        .where(
            instances.c.created_at < max(before.values(), default=0),
            instances.c.created_at >= at,
            sa.or_(instances.c.created_at > at, instances.c.id > last),
        )
        .order_by(instances.c.created_at, instances.c.id)
        .limit(chunk.limit)
    ).all()
    ended = [row for row in page if row.ended_at is not None and row.ended_at < before.get(row.app, 0)]
    live = _live_chains(c, {row.chain for row in ended})
    live |= _live(c, {row.parent for row in ended if row.parent is not None})
    parents = _with_live_children(c, [row.id for row in ended])
    free = [row for row in ended if row.id not in parents and not {row.chain, row.parent} & live]
    if chunk.dry_run:
        return Swept(len(free), len(page) - len(free), _end_of(page, chunk.limit, "created_at", "id"))
    gone = _as_many_as_fit(c, [row.id for row in free])
    for part in chunked(sorted(gone)):
        c.execute(
            traits.lock_rows(
                sa.select(instances.c.id).where(instances.c.id.in_(part)).order_by(instances.c.id)
            )
        )
        _delete_histories(c, part)
        c.execute(sa.delete(waits).where(waits.c.instance_id.in_(part)))
        c.execute(sa.delete(instances).where(instances.c.id.in_(part)))
    if len(gone) < len(free):
        # What is left of the page comes with the next chunk: from behind the last one that has been dealt with.
        done = len(list(takewhile(lambda row: row.id != free[len(gone)].id, page)))
        return Swept(len(gone), done - len(gone), _end_of(page[:done], done, "created_at", "id"))
    return Swept(len(gone), len(page) - len(gone), _end_of(page, chunk.limit, "created_at", "id"))


def _delete_histories(c: sa.Connection, ids: Sequence[str]) -> None:
    """One that is very long in several statements: each has only so much time."""
    theirs = history.c.instance_id.in_(ids)
    last = c.execute(sa.select(sa.func.max(history.c.seq)).where(theirs)).scalar() or 0
    for seq in range(MOST_RECORDS, last, MOST_RECORDS):
        c.execute(sa.delete(history).where(theirs, history.c.seq <= seq))
    c.execute(sa.delete(history).where(theirs))


def _live(c: sa.Connection, ids: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for part in chunked(sorted(ids)):
        alive = sa.and_(instances.c.id.in_(part), instances.c.ended_at.is_(None))
        found |= set(c.execute(sa.select(instances.c.id).where(alive)).scalars())
    return found


def _with_live_children(c: sa.Connection, ids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for part in chunked(sorted(ids)):
        alive = sa.and_(instances.c.parent.in_(part), instances.c.ended_at.is_(None))
        found |= set(c.execute(sa.select(instances.c.parent).where(alive).distinct()).scalars())
    return found


def _as_many_as_fit(c: sa.Connection, ids: Sequence[str]) -> list[str]:
    """The first of these that have ``MOST_RECORDS`` records together; at least one."""
    fitting: list[str] = []
    records = 0
    for part in chunked(ids, 100):
        of_these = history.c.instance_id.in_(part)
        counted = (
            sa.select(history.c.instance_id, sa.func.count()).where(of_these).group_by(history.c.instance_id)
        )
        counts = {one: int(count) for one, count in c.execute(counted)}
        for one in part:
            records += counts.get(one, 0)
            if fitting and records > MOST_RECORDS:
                return fitting
            fitting.append(one)
    return fitting


# ---------------------------------------------------------------------------------------------- dead letters


def letters(c: sa.Connection, traits: Traits, chunk: Chunk) -> Swept:
    """Deliveries that were given up; younger ones have higher numbers."""
    del traits
    select = sa.select(dead_letters.c.id, dead_letters.c.created_at).where(dead_letters.c.id > chunk.after[0])
    page = c.execute(select.order_by(dead_letters.c.id).limit(chunk.limit)).all()
    old = list(takewhile(lambda row: row.created_at < chunk.before, page))
    for part in chunked([row.id for row in old] if not chunk.dry_run else []):
        c.execute(sa.delete(dead_letters).where(dead_letters.c.id.in_(part)))
    return Swept(len(old), 0, _end_of(old, chunk.limit, "id"))


def dead_rows(c: sa.Connection, traits: Traits, chunk: Chunk) -> Swept:
    """Rows of the outbox that were given up, as if an operator discarded them."""
    del traits
    limit = min(chunk.limit, _ROWS)
    page = c.execute(
        sa.select(outbox.c.id)
        .where(outbox.c.state == "dead", outbox.c.created_at < chunk.before, outbox.c.id > chunk.after[0])
        .order_by(outbox.c.id)
        .limit(limit)
    ).all()
    removed = sum(chunk.dry_run or discard(c, row.id) for row in page)
    return Swept(removed, len(page) - removed, _end_of(page, limit, "id"))
