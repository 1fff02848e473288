"""Accept: a batch of events becomes durable and wakes what waits for them; three packets.

First packet:  accept lock, exclusive · source positions · what is known of the events' identities and addressees.
Second packet: positions, identities, events, keys, poison · which waits they match.
Third packet:  lock the instances of these waits in id order · mark · start · COMMIT.

The accept lock is the row ``edda_accept``; locking it also yields the routing version and the last sequence number.
While it is held no event wait is registered, so that what the second packet matches is all there is; a wait that its
owner drops before the third packet has locked the instance is not there to be marked any more, and its owner only looks
once more than needed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from edda.errors import StaleRoutingError
from edda.storage.mysql import rows
from edda.storage.mysql.connection import Link, Result, Row
from edda.storage.mysql.errors import CollisionError
from edda.storage.mysql.signal import signal, woken_apps
from edda.storage.mysql.statements import (
    COMMIT,
    Rendered,
    Statement,
    Value,
    insert,
    marks,
    pairs,
    start_transaction,
)
from edda.storage.rows import (
    DEAF,
    AcceptBatch,
    AcceptResult,
    EventResult,
    NewEvent,
    PositionAdvance,
    Verdict,
)

#: Waits woken inside the accept transaction; the rest is marked after its commit.
FIRST_WAITS = 1_000

#: Hash -> (event, the chain it is addressed to or None).
OpenKeys = dict[bytes, list[tuple[int, bytes | None]]]

_DEAF = {state.value.encode() for state in DEAF}


@dataclass(slots=True)
class _Batch:
    """What is known of the batch once the accept lock is held."""

    now: int
    last_seq: int
    results: list[EventResult | None]
    chains: dict[str, tuple[bytes, bool]]  # addressed instance -> its chain, and whether it has ended
    stale: dict[int, int] = field(default_factory=dict)
    moving: list[tuple[PositionAdvance, bool]] = field(default_factory=list)  # and whether its row exists
    ours: list[tuple[int, NewEvent, int]] = field(default_factory=list)  # place in the batch, event, seq
    repeated: bool = False  # an earlier try was committed
    accepted_before: list[NewEvent] = field(default_factory=list)  # by that try


async def accept(link: Link, offset_us: int, batch: AcceptBatch) -> AcceptResult:
    """One transaction of three packets; see the contract."""
    known = await _lock(link, offset_us, batch)
    open_keys = _open_keys(known)
    which = matches(open_keys)
    matched, more = await _write(link, batch, known, open_keys, which)
    left = [(key, max(seq for seq, _ in open_keys[key]), known.now) for key in sorted(more)]
    woken, starts, unmarked = await _wake(link, known, [(row[0], row[1]) for row, _ in matched], which, left)
    more |= unmarked
    waits: dict[int, int] = defaultdict(int)
    for _, seqs in matched:
        for seq in seqs:
            waits[seq] += 1
    for place, event, seq in known.ours:
        wanted = waits[seq] or event.starts or not more.isdisjoint(event.keys)
        verdict = Verdict.ACCEPTED if wanted else Verdict.UNMATCHED
        known.results[place] = EventResult(verdict, seq, waits[seq], starts[seq])
    return AcceptResult(
        tuple(result for result in known.results if result is not None),
        woken,
        tuple(sorted(more)),
        known.stale,
    )


# ---------------------------------------------------------------------------------------------- first packet


async def _lock(link: Link, offset_us: int, batch: AcceptBatch) -> _Batch:
    digests = sorted({event.digest for event in batch.events})
    addressees = sorted({event.addressee for event in batch.events if event.addressee is not None})
    begin, read_clock = start_transaction(offset_us)
    head = (
        begin,
        Statement(
            "SELECT routing_version, last_seq, last_accepted_at FROM edda_accept WHERE id = 1 FOR UPDATE"
        ),
        read_clock,
        Statement("SELECT @edda_now"),
        *_read_positions(batch.positions),
        *_read_letters(batch),
    )
    answers = await link.run(
        *head,
        *_among("SELECT digest, data_hash, seq, batch_id FROM edda_identities WHERE digest IN", digests),
        *_among("SELECT id, chain, state FROM edda_instances WHERE id IN", addressees),
    )
    version, last_seq, last_accepted_at = answers[1].rows[0]
    if version != batch.routing_version:
        raise StaleRoutingError(
            f"the batch was computed for routing version {batch.routing_version}, the database is at {version}. "
            "Nothing was written; read the routing again and recompute the batch."
        )
    identities = {row[0]: row for row in answers[len(head)].rows} if digests else {}
    found = {row[0].decode(): row for row in answers[-1].rows} if addressees else {}
    known = _Batch(
        now=max(answers[3].rows[0][0], last_accepted_at),
        last_seq=last_seq,
        results=[None] * len(batch.events),
        # An unknown id stands for itself: the instance may yet start.
        chains={
            one: (found[one][1], found[one][2] in _DEAF) if one in found else (one.encode(), False)
            for one in addressees
        },
        repeated=any(row[3] == batch.batch_id for row in identities.values())
        or bool(batch.poison and answers[len(head) - 1].rows),
    )
    positions = answers[4].rows if batch.positions else ()
    _compare_positions(known, batch.positions, {tuple(row[:4]): row[4] for row in positions})
    _sort_out(known, batch, identities)
    return known


def _among(head: str, values: Sequence[Value]) -> Iterator[Statement]:
    if values:
        yield Statement(f"{head} {marks(len(values))}", values)


def _read_positions(positions: Sequence[PositionAdvance]) -> Iterator[Statement]:
    if positions:
        here = "(cluster = %s AND group_id = %s AND topic = %s AND partition_id = %s)"
        keys = sorted((p.cluster, p.group, p.topic, p.partition) for p in positions)
        yield Statement(
            "SELECT cluster, group_id, topic, partition_id, next_offset FROM edda_source_positions "
            f"FORCE INDEX (PRIMARY) WHERE {' OR '.join([here] * len(keys))} "
            "ORDER BY cluster, group_id, topic, partition_id FOR UPDATE",
            [value for key in keys for value in key],
        )


def _read_letters(batch: AcceptBatch) -> Iterator[Statement]:
    if batch.poison:
        yield Statement("SELECT number FROM edda_dead_letters WHERE batch_id = %s LIMIT 1", (batch.batch_id,))


def _compare_positions(known: _Batch, positions: Sequence[PositionAdvance], stored: dict[Row, int]) -> None:
    for place, p in enumerate(positions):
        at = stored.get((p.cluster.encode(), p.group.encode(), p.topic.encode(), p.partition))
        # What an earlier try of this batch has moved is where it should be.
        expected = p.next_offset if known.repeated else p.fetched_from
        if at is not None and at != expected:
            known.stale[place] = at
        elif not known.repeated:
            known.moving.append((p, at is not None))


def _sort_out(known: _Batch, batch: AcceptBatch, identities: dict[bytes, Row]) -> None:
    """Give each event its verdict or its sequence number. The key of the insert that follows has the last word."""
    first: dict[bytes, tuple[bytes, int, bool]] = {}
    for place, event in enumerate(batch.events):
        digest = event.digest
        row = identities.get(digest)
        mine = row is not None and row[3] == batch.batch_id and digest not in first
        if event.position in known.stale and not mine:
            known.results[place] = EventResult(Verdict.STALE_POSITION)
            continue
        if mine and row is not None:
            first[digest] = row[1], row[2], True
            known.results[place] = EventResult(Verdict.ACCEPTED, row[2])
            known.accepted_before.append(event)
            continue
        data_hash, seq = (row[1], row[2]) if row is not None else first.get(digest, (b"", 0, False))[:2]
        if seq:
            verdict = Verdict.DUPLICATE if data_hash == event.data_hash else Verdict.CONFLICT
            known.results[place] = EventResult(verdict, seq)
        else:
            seq = known.last_seq + len(known.ours) + 1
            first[digest] = event.data_hash, seq, True
            known.ours.append((place, event, seq))


# ---------------------------------------------------------------------------------------------- second packet


async def _write(
    link: Link, batch: AcceptBatch, known: _Batch, open_keys: OpenKeys, which: Statement
) -> tuple[list[tuple[Row, list[int]]], set[bytes]]:
    """The matched waits with the events that match each, and the hashes with more waits than fit."""
    limit = link.max_packet // 2
    identities = list(_insert_identities(known, batch.batch_id, limit))
    # Accepted in order, also when the clock was set back.
    statements: list[Statement | Rendered] = [Statement("SET @edda_now = %s", (known.now,)), *identities]
    statements += _move_positions(known)
    statements += _insert_events(known, limit)
    if not known.repeated:
        statements += _insert_poison(known, batch, limit)
    if open_keys:
        statements.append(match(which))
    answers = await link.run(*statements)
    _all_were_new(known, answers[1 : 1 + len(identities)])
    if not open_keys:
        return [], set()
    found = answers[-1].rows
    matched = [
        (row, [seq for seq, chain in open_keys[row[2]] if chain is None or chain == row[3]])
        for row in found[:FIRST_WAITS]
    ]
    return matched, set(open_keys) if len(found) > FIRST_WAITS else set()


def _insert_identities(known: _Batch, batch_id: bytes, limit: int) -> Iterator[Rendered]:
    values = sorted((event.digest, event.data_hash, seq, batch_id) for _, event, seq in known.ours)
    head = "INSERT INTO edda_identities (digest, data_hash, seq, batch_id) VALUES"
    return insert(head, "(%s, %s, %s, %s)", values, limit, "ON DUPLICATE KEY UPDATE digest = digest")


def _all_were_new(known: _Batch, inserted: Sequence[Result]) -> None:
    if sum(result.changed for result in inserted) != len(known.ours):
        raise CollisionError


def _move_positions(known: _Batch) -> Iterator[Statement]:
    for p, exists in known.moving:
        key = (p.cluster, p.group, p.topic, p.partition)
        if exists:
            yield Statement(
                "UPDATE edda_source_positions SET next_offset = %s "
                "WHERE cluster = %s AND group_id = %s AND topic = %s AND partition_id = %s",
                (p.next_offset, *key),
            )
        else:
            yield Statement(
                "INSERT INTO edda_source_positions (cluster, group_id, topic, partition_id, next_offset) "
                "VALUES (%s, %s, %s, %s, %s)",
                (*key, p.next_offset),
            )


def _insert_events(known: _Batch, limit: int) -> Iterator[Statement | Rendered]:
    if not known.ours:
        return
    events: list[Sequence[Value]] = []
    keys: list[Sequence[Value]] = []
    for _, event, seq in known.ours:
        chain = None if event.addressee is None else known.chains[event.addressee][0]
        events.append(
            (
                seq,
                event.type,
                event.source,
                event.event_id,
                event.attributes,
                event.data,
                event.content_type,
                chain,
                known.now,
            )
        )
        keys += [(key, chain or b"", seq) for key in dict.fromkeys(event.keys)]
    head = (
        "INSERT INTO edda_events (seq, type, source, event_id, attributes, data, content_type, addressee, "
        "accepted_at) VALUES"
    )
    yield from insert(head, marks(9), events, limit)
    yield from insert("INSERT INTO edda_event_keys (hash, addressee, seq) VALUES", marks(3), keys, limit)
    yield Statement(
        "UPDATE edda_accept SET last_seq = %s, last_accepted_at = %s WHERE id = 1",
        (known.ours[-1][2], known.now),
    )


def _insert_poison(known: _Batch, batch: AcceptBatch, limit: int) -> Iterator[Rendered]:
    head = (
        "INSERT INTO edda_dead_letters "
        "(batch_id, number, origin, raw, headers, reason, attempts, created_at) VALUES"
    )
    values = [
        (batch.batch_id, number, one.origin, one.raw, one.headers, one.reason, one.attempts, known.now)
        for number, one in enumerate(batch.poison, 1)
        if one.position not in known.stale
    ]
    # The key has the last word on what is there already.
    return insert(head, marks(8), values, limit, "ON DUPLICATE KEY UPDATE number = number")


def _open_keys(known: _Batch) -> OpenKeys:
    """What wakes; events for ended instances wake nobody."""
    keys: OpenKeys = defaultdict(list)
    for _, event, seq in known.ours:
        chain, ended = (None, False) if event.addressee is None else known.chains[event.addressee]
        if not ended:
            for key in dict.fromkeys(event.keys):
                keys[key].append((seq, chain))
    return keys


def matches(keys: OpenKeys) -> Statement:
    """The condition on a wait that one of these events is for it: by hash, and if addressed by chain, too."""
    anybody: list[Value] = [key for key, events in keys.items() if any(chain is None for _, chain in events)]
    addressed: list[tuple[Value, Value]] = sorted(
        {
            (key, chain)
            for key, events in keys.items()
            if all(chain is not None for _, chain in events)
            for _, chain in events
            if chain is not None
        }
    )
    conditions, values = [], list(anybody)
    if anybody:
        conditions.append(f"w.hash IN {marks(len(anybody))}")
    if addressed:
        condition = pairs("w.hash", "w.chain", addressed)
        conditions.append(condition.text)
        values.extend(condition.values)
    return Statement(f"({' OR '.join(conditions)}) AND w.kind = 'event'", values)


def match(which: Statement) -> Statement:
    """The first waits that ``matches``, and one more if there are more."""
    return Statement(
        "SELECT w.instance_id, w.seq, w.hash, w.chain FROM edda_waits w FORCE INDEX (edda_waits_hash) "
        f"WHERE {which.text} AND w.due = 0 LIMIT {FIRST_WAITS + 1}",
        which.values,
    )


# ---------------------------------------------------------------------------------------------- third packet


async def _wake(
    link: Link,
    known: _Batch,
    waits: Sequence[tuple[Value, Value]],
    which: Statement,
    left: Sequence[Sequence[Value]],
) -> tuple[frozenset[str], dict[int, int], set[bytes]]:
    """The apps that were woken, how many instances each event has started, and what an earlier try has left."""
    signals = list(signal(waits, which)) if waits else []
    starts = [replace(new, start_event=seq) for _, event, seq in known.ours for new in event.starts]
    limit = link.max_packet // 2
    changes: list[Statement | Rendered] = [
        *signals,
        *insert("INSERT INTO edda_unmarked (hash, seq, created_at) VALUES", marks(3), left, limit),
        *rows.instances(starts, limit),
    ]
    # A sequence number is given once, so the row that carries it is the one inserted here.
    started = list(
        _among("SELECT app, start_event FROM edda_instances WHERE id IN", [new.id for new in starts])
    )
    again = list(_look_again(known))
    answers = await link.run(*changes, *started, *again, COMMIT)
    apps = woken_apps(answers[0]) if signals else set()
    counts: dict[int, int] = defaultdict(int)
    for app, event in answers[len(changes)].rows if started else ():
        if event > known.last_seq:
            apps.add(app.decode())
            counts[event] += 1
    if not again:
        return frozenset(apps), counts, set()
    living, *unmarked = answers[-1 - len(again) : -1]
    apps.update(row[0].decode() for row in living.rows)
    return frozenset(apps), counts, {row[0] for answer in unmarked for row in answer.rows}


def _look_again(known: _Batch) -> Iterator[Statement]:
    """What an earlier try has woken is not known any more: all who live may look. And what it has left."""
    if known.accepted_before:
        yield Statement("SELECT DISTINCT app FROM edda_workers WHERE dead = 0")
    hashes = sorted({key for event in known.accepted_before for key in event.keys})
    yield from _among("SELECT hash FROM edda_unmarked FORCE INDEX (PRIMARY) WHERE hash IN", hashes)
