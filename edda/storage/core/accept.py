"""accept and what belongs to it: routing, shapes, triggers, marking waits due. See ``contract.Storage``.

Lock order: accept lock, source positions, identities by digest, instances by id, waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from edda.errors import StaleRoutingError
from edda.storage.core.traits import Traits
from edda.storage.core.values import chunked, instance_values
from edda.storage.core.wakes import has_event, signal
from edda.storage.rows import (
    ENDED,
    AcceptBatch,
    AcceptResult,
    EventResult,
    NewDeadLetter,
    NewEvent,
    PositionAdvance,
    Verdict,
)
from edda.storage.schema import (
    accept,
    dead_letters,
    event_keys,
    events,
    identities,
    instances,
    source_positions,
    waits,
)

#: Waits woken inside the accept transaction; the rest is marked after its commit.
FIRST_WAITS = 1_000


# ---------------------------------------------------------------------------------------------- the transaction


def accept_batch(c: sa.Connection, traits: Traits, batch: AcceptBatch, now: int) -> AcceptResult:
    """The whole of it; the caller commits."""
    traits.lock_accept(c, exclusive=True)
    head = c.execute(sa.select(accept).where(accept.c.id == 1)).one()
    if head.routing_version != batch.routing_version:
        msg = f"routing version {batch.routing_version} is stale, the database is at {head.routing_version}"
        raise StaleRoutingError(msg)
    now = max(now, head.last_accepted_at)
    stale = _advance_positions(c, batch.positions)
    results: list[EventResult | None] = [
        EventResult(Verdict.STALE_POSITION) if event.position in stale else None for event in batch.events
    ]
    offered = [(at, event) for at, event in enumerate(batch.events) if results[at] is None]
    ours = _claim_identities(c, batch.batch_id, offered, results, head.last_seq)
    chains = _addressees(c, [event for _, event, _ in ours])
    _insert_events(c, ours, chains, now)
    woken, counts, more = _wake(c, traits, ours, chains, now)
    starts = _start(c, traits, ours, now, woken)
    for at, event, seq in ours:
        matched = counts.get(seq, 0)
        started = starts.get(seq, 0)
        verdict = Verdict.ACCEPTED if matched or started or set(event.keys) & more else Verdict.UNMATCHED
        results[at] = EventResult(verdict, seq, matched, started)
    _poison(c, [letter for letter in batch.poison if letter.position not in stale], now)
    if ours:
        c.execute(
            sa.update(accept).where(accept.c.id == 1).values(last_seq=ours[-1][2], last_accepted_at=now)
        )
    return AcceptResult(
        tuple(result for result in results if result is not None),
        frozenset(woken),
        tuple(sorted(more)),
        stale,
    )


def _advance_positions(c: sa.Connection, positions: Sequence[PositionAdvance]) -> dict[int, int]:
    stale: dict[int, int] = {}
    table = source_positions
    order = sorted(
        range(len(positions)),
        key=lambda at: (
            positions[at].cluster,
            positions[at].group,
            positions[at].topic,
            positions[at].partition,
        ),
    )
    for at in order:
        p = positions[at]
        here = sa.and_(
            table.c.cluster == p.cluster,
            table.c.group_id == p.group,
            table.c.topic == p.topic,
            table.c.partition_id == p.partition,
        )
        stored = c.execute(sa.select(table.c.next_offset).where(here)).scalar()
        if stored is None:
            c.execute(
                sa.insert(table).values(
                    cluster=p.cluster,
                    group_id=p.group,
                    topic=p.topic,
                    partition_id=p.partition,
                    next_offset=p.next_offset,
                )
            )
        elif stored != p.fetched_from:
            stale[at] = stored
        else:
            c.execute(sa.update(table).where(here).values(next_offset=p.next_offset))
    return stale


def _claim_identities(
    c: sa.Connection,
    batch_id: bytes,
    offered: Sequence[tuple[int, NewEvent]],
    results: list[EventResult | None],
    last_seq: int,
) -> list[tuple[int, NewEvent, int]]:
    """Insert the identities that are new. The accept lock makes the look before the insert safe."""
    known: dict[bytes, Any] = {}
    digests = sorted({event.digest for _, event in offered})
    for part in chunked(digests):
        known.update(
            {row.digest: row for row in c.execute(sa.select(identities).where(identities.c.digest.in_(part)))}
        )
    ours: list[tuple[int, NewEvent, int]] = []
    first: dict[bytes, tuple[NewEvent, int]] = {}
    for at, event in offered:
        row = known.get(event.digest)
        if row is not None:
            if row.batch_id == batch_id:
                verdict = Verdict.ACCEPTED  # this very batch, sent again after an unknown commit
            else:
                verdict = Verdict.DUPLICATE if row.data_hash == event.data_hash else Verdict.CONFLICT
            results[at] = EventResult(verdict, row.seq)
        elif event.digest in first:
            twin, seq = first[event.digest]
            same = twin.data_hash == event.data_hash
            results[at] = EventResult(Verdict.DUPLICATE if same else Verdict.CONFLICT, seq)
        else:
            seq = last_seq + len(ours) + 1
            first[event.digest] = (event, seq)
            ours.append((at, event, seq))
    rows = [
        {"digest": event.digest, "data_hash": event.data_hash, "seq": seq, "batch_id": batch_id}
        for _, event, seq in sorted(ours, key=lambda entry: entry[1].digest)
    ]
    if rows:
        c.execute(sa.insert(identities), rows)
    return ours


def _addressees(c: sa.Connection, batch: Sequence[NewEvent]) -> dict[str, tuple[str, bool]]:
    """Addressed instance -> (its chain, whether it has ended). Unknown ids stand for themselves: they may yet start."""
    ids = sorted({event.addressee for event in batch if event.addressee is not None})
    found = {one: (one, False) for one in ids}
    for part in chunked(ids):
        for row in c.execute(
            sa.select(instances.c.id, instances.c.chain, instances.c.state).where(instances.c.id.in_(part))
        ):
            found[row.id] = (row.chain, row.state in ENDED)
    return found


def _insert_events(
    c: sa.Connection, ours: Sequence[tuple[int, NewEvent, int]], chains: dict[str, tuple[str, bool]], now: int
) -> None:
    if not ours:
        return
    rows, keys = [], []
    for _, event, seq in ours:
        addressee = chains[event.addressee][0] if event.addressee is not None else None
        rows.append(
            {
                "seq": seq,
                "type": event.type,
                "source": event.source,
                "event_id": event.event_id,
                "attributes": event.attributes,
                "data": event.data,
                "content_type": event.content_type,
                "addressee": addressee,
                "accepted_at": now,
            }
        )
        keys += [{"hash": key, "addressee": addressee or "", "seq": seq} for key in dict.fromkeys(event.keys)]
    c.execute(sa.insert(events), rows)
    if keys:
        c.execute(sa.insert(event_keys), keys)


def _wake(
    c: sa.Connection,
    traits: Traits,
    ours: Sequence[tuple[int, NewEvent, int]],
    chains: dict[str, tuple[str, bool]],
    now: int,
) -> tuple[set[str], dict[int, int], set[bytes]]:
    """Mark the waits that the new events match; (apps, waits per event, hashes with more)."""
    open_keys: dict[bytes, list[tuple[int, str | None]]] = {}
    for _, event, seq in ours:
        addressee, ended = chains[event.addressee] if event.addressee is not None else (None, False)
        if not ended:
            for key in event.keys:
                open_keys.setdefault(key, []).append((seq, addressee))
    found: list[Any] = []
    more: set[bytes] = set()
    for part in chunked(sorted(open_keys)):
        room = FIRST_WAITS - len(found)
        addressed_only = [k for k in part if all(addressee is not None for _, addressee in open_keys[k])]
        chains_of = sorted({a for k in addressed_only for _, a in open_keys[k] if a is not None})
        reachable = sa.or_(waits.c.hash.not_in(addressed_only), waits.c.chain.in_(chains_of))
        rows = c.execute(
            sa.select(waits.c.instance_id, waits.c.seq, waits.c.hash, waits.c.chain)
            .where(waits.c.hash.in_(part), ~waits.c.due, reachable if addressed_only else sa.true())
            .limit(room + 1)
        ).all()
        if len(rows) > room:
            more |= set(part)
            rows = rows[:room]
        found += rows
    matched: dict[tuple[str, int], None] = {}
    counts: dict[int, int] = {}
    for row in found:
        hits = [seq for seq, addressee in open_keys[row.hash] if addressee in {None, row.chain}]
        if hits:
            matched[row.instance_id, row.seq] = None
            for seq in hits:
                counts[seq] = counts.get(seq, 0) + 1
    return signal(c, traits, list(matched), now), counts, more


def _start(
    c: sa.Connection, traits: Traits, ours: Sequence[tuple[int, NewEvent, int]], now: int, apps: set[str]
) -> dict[int, int]:
    rows = [instance_values(new, now, seq) for _, event, seq in ours for new in event.starts]
    if not rows:
        return {}
    traits.insert_ignoring(c, instances, sorted(rows, key=lambda row: str(row["id"])))
    counts: dict[int, int] = {}
    for part in chunked([row["id"] for row in rows]):
        for row in c.execute(
            sa.select(instances.c.app, instances.c.start_event).where(instances.c.id.in_(part))
        ):
            counts[row.start_event] = counts.get(row.start_event, 0) + 1
            apps.add(row.app)
    return counts


def _poison(c: sa.Connection, letters: Sequence[NewDeadLetter], now: int) -> None:
    if letters:
        c.execute(
            sa.insert(dead_letters),
            [
                {
                    "origin": letter.origin,
                    "raw": letter.raw,
                    "headers": letter.headers,
                    "reason": letter.reason,
                    "attempts": letter.attempts,
                    "created_at": now,
                }
                for letter in letters
            ],
        )


# ---------------------------------------------------------------------------------------------- marking, later


def mark_due(
    c: sa.Connection, traits: Traits, hashes: Sequence[bytes], limit: int, now: int
) -> tuple[frozenset[str], bool]:
    """Waits of these hashes that have an unreceived event and do not know it yet."""
    return _mark(
        c, traits, sa.and_(waits.c.hash.in_(sorted(set(hashes))), ~waits.c.due, has_event), limit, now
    )


def _mark(
    c: sa.Connection, traits: Traits, which: sa.ColumnElement[bool], limit: int, now: int
) -> tuple[frozenset[str], bool]:
    rows = c.execute(sa.select(waits.c.instance_id, waits.c.seq).where(which).limit(limit + 1)).all()
    due = [(row.instance_id, row.seq) for row in rows[:limit]]
    return frozenset(signal(c, traits, due, now)), len(rows) > limit


def fire_timers(c: sa.Connection, traits: Traits, limit: int, now: int) -> tuple[frozenset[str], int]:
    """Waits whose deadline has passed."""
    rows = c.execute(
        sa.select(waits.c.instance_id, waits.c.seq)
        .where(~waits.c.due, waits.c.deadline.is_not(None), waits.c.deadline <= now)
        .order_by(waits.c.deadline)
        .limit(limit)
    ).all()
    due = [(row.instance_id, row.seq) for row in rows]
    return frozenset(signal(c, traits, due, now)), len(due)
