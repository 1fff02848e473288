"""Accept: a batch of events becomes durable and wakes what waits for them, in one transaction.

The write lock, which is the accept lock here, is held from the beginning: what is read at first stays so to the end,
and no wait is registered in between.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edda.errors import StaleRoutingError
from edda.storage.rows import (
    DEAF,
    AcceptBatch,
    AcceptResult,
    EventResult,
    NewEvent,
    NewInstance,
    PositionAdvance,
    Verdict,
)
from edda.storage.sqlite.claim import EVENT_COLUMNS
from edda.storage.sqlite.rows import insert_instances
from edda.storage.sqlite.signal import signal
from edda.storage.sqlite.statements import Value, among, pairs, write

#: Waits woken inside the accept transaction; the rest is marked after its commit.
FIRST_WAITS = 1_000

_HERE = "cluster = ? AND group_id = ? AND topic = ? AND partition_id = ?"


@dataclass(slots=True)
class _Batch:
    """What is known of the batch."""

    now: int
    last_seq: int
    identities: dict[bytes, tuple[bytes, int, bytes]]  # digest -> data hash, seq, batch
    chains: dict[str, tuple[str, bool]]  # addressed instance -> its chain, and whether it has ended
    repeated: bool  # an earlier try was committed
    stale: dict[int, int] = field(default_factory=dict)
    results: dict[int, EventResult] = field(default_factory=dict)  # by place in the batch
    ours: list[tuple[int, NewEvent, int]] = field(default_factory=list)  # place in the batch, event, seq
    accepted_before: list[NewEvent] = field(default_factory=list)  # by an earlier try

    def address(self, event: NewEvent) -> tuple[str | None, bool]:
        """The chain that an event is for (None: everybody), and whether the instance it names has ended."""
        return (None, False) if event.addressee is None else self.chains[event.addressee]


def accept(c: sqlite3.Connection, now: int, batch: AcceptBatch) -> AcceptResult:
    """One transaction; see the contract."""
    known = _look_up(c, now, batch)
    _move_positions(c, known, batch.positions)
    _sort_out(known, batch)
    _store(c, known, batch)
    matched, more, apps = _wake(c, known)
    starts = _start(c, known, apps)
    if known.accepted_before:
        _look_again(c, known, apps, more)
    for place, event, seq in known.ours:
        # An event that fits a trigger is accepted also where the run of its key is alive: that run gets it.
        wanted = matched[seq] or event.starts or not more.isdisjoint(event.keys)
        verdict = Verdict.ACCEPTED if wanted else Verdict.UNMATCHED
        known.results[place] = EventResult(verdict, seq, matched[seq], starts[seq])
    return AcceptResult(
        tuple(known.results[place] for place in range(len(batch.events))),
        frozenset(apps),
        tuple(sorted(more)),
        known.stale,
    )


# ---------------------------------------------------------------------------------------------- what is known


def _look_up(c: sqlite3.Connection, now: int, batch: AcceptBatch) -> _Batch:
    ((version, last_seq, last_accepted_at),) = c.execute(
        "SELECT routing_version, last_seq, last_accepted_at FROM edda_accept WHERE id = 1"
    )
    if version != batch.routing_version:
        raise StaleRoutingError(
            f"the batch was computed for routing version {batch.routing_version}, the database is at {version}. "
            "Nothing was written; read the routing again and recompute the batch."
        )
    identities: dict[bytes, tuple[bytes, int, bytes]] = {}
    for marks, digests in among([event.digest for event in batch.events]):
        rows: Any = c.execute(
            f"SELECT digest, data_hash, seq, batch_id FROM edda_identities WHERE digest IN {marks}", digests
        )
        identities.update((row[0], row[1:]) for row in rows)
    # An unknown id stands for itself: the instance may yet start.
    addressed = {event.addressee for event in batch.events if event.addressee is not None}
    chains = {one: (one, False) for one in addressed}
    for marks, ids in among(sorted(addressed)):
        rows = c.execute(f"SELECT id, chain, state FROM edda_instances WHERE id IN {marks}", ids)
        chains.update((one, (chain, state in DEAF)) for one, chain, state in rows)
    return _Batch(
        # Accepted in order, also when the clock was set back.
        now=max(now, last_accepted_at),
        last_seq=last_seq,
        identities=identities,
        chains=chains,
        repeated=any(batch_id == batch.batch_id for _, _, batch_id in identities.values())
        or bool(batch.poison and _has_letters(c, batch.batch_id)),
    )


def _has_letters(c: sqlite3.Connection, batch_id: bytes) -> bool:
    return c.execute("SELECT 1 FROM edda_dead_letters WHERE batch_id = ?", (batch_id,)).fetchone() is not None


def _move_positions(c: sqlite3.Connection, known: _Batch, positions: Sequence[PositionAdvance]) -> None:
    for place, p in enumerate(positions):
        key = (p.cluster, p.group, p.topic, p.partition)
        found = c.execute(f"SELECT next_offset FROM edda_source_positions WHERE {_HERE}", key).fetchone()
        # What an earlier try of this batch has moved is where it should be.
        expected = p.next_offset if known.repeated else p.fetched_from
        if found is None:
            c.execute(
                "INSERT INTO edda_source_positions (cluster, group_id, topic, partition_id, next_offset) "
                "VALUES (?, ?, ?, ?, ?)",
                (*key, p.next_offset),
            )
        elif found[0] != expected:
            known.stale[place] = found[0]
        else:
            c.execute(
                f"UPDATE edda_source_positions SET next_offset = ? WHERE {_HERE}", (p.next_offset, *key)
            )


def _sort_out(known: _Batch, batch: AcceptBatch) -> None:
    """Give each event its verdict or its sequence number."""
    seen: set[bytes] = set()
    for place, event in enumerate(batch.events):
        data_hash, seq, batch_id = known.identities.get(event.digest, (b"", 0, b""))
        if batch_id == batch.batch_id and event.digest not in seen:
            known.results[place] = EventResult(Verdict.ACCEPTED, seq)
            known.accepted_before.append(event)
        elif event.position in known.stale:
            known.results[place] = EventResult(Verdict.STALE_POSITION)
            continue
        elif seq:
            verdict = Verdict.DUPLICATE if data_hash == event.data_hash else Verdict.CONFLICT
            known.results[place] = EventResult(verdict, seq)
        else:
            seq = known.last_seq + len(known.ours) + 1
            known.identities[event.digest] = event.data_hash, seq, batch.batch_id
            known.ours.append((place, event, seq))
        seen.add(event.digest)


# ---------------------------------------------------------------------------------------------- what is written


def _store(c: sqlite3.Connection, known: _Batch, batch: AcceptBatch) -> None:
    identities: list[Sequence[Value]] = []
    events: list[Sequence[Value]] = []
    keys: list[Sequence[Value]] = []
    for _, event, seq in known.ours:
        chain, _ = known.address(event)
        identities.append((event.digest, event.data_hash, seq, batch.batch_id))
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
        keys += [(key, chain or "", seq) for key in dict.fromkeys(event.keys)]
    head = "INSERT OR FAIL INTO edda_identities (digest, data_hash, seq, batch_id) VALUES"
    # The key has the last word on whether an identity is new: one that is there already fails the batch.
    write(c, head, "(?, ?, ?, ?)", identities)
    head = f"INSERT OR FAIL INTO edda_events ({EVENT_COLUMNS}) VALUES"
    write(c, head, "(?, ?, ?, ?, ?, ?, ?, ?, ?)", events)
    write(c, "INSERT OR FAIL INTO edda_event_keys (hash, addressee, seq) VALUES", "(?, ?, ?)", keys)
    if known.ours:
        c.execute(
            "UPDATE edda_accept SET last_seq = ?, last_accepted_at = ? WHERE id = 1",
            (known.ours[-1][2], known.now),
        )
    if not known.repeated:
        _bury(c, known, batch)


def _bury(c: sqlite3.Connection, known: _Batch, batch: AcceptBatch) -> None:
    head = (
        "INSERT OR FAIL INTO edda_dead_letters "
        "(batch_id, number, origin, raw, headers, reason, attempts, created_at) VALUES"
    )
    letters: list[Sequence[Value]] = [
        (batch.batch_id, number, one.origin, one.raw, one.headers, one.reason, one.attempts, known.now)
        for number, one in enumerate(batch.poison, 1)
        if one.position not in known.stale
    ]
    # The key has the last word on what is there already.
    write(c, head, "(?, ?, ?, ?, ?, ?, ?, ?)", letters, "ON CONFLICT (batch_id, number) DO NOTHING")


# ---------------------------------------------------------------------------------------------- who wakes


def _wake(c: sqlite3.Connection, known: _Batch) -> tuple[dict[int, int], set[bytes], set[str]]:
    """Waits per event, hashes with more waits than were marked, and the apps woken."""
    # Hash -> (event, the chain it is for or None). Events for instances that have ended wake nobody.
    open_keys: dict[bytes, list[tuple[int, str | None]]] = defaultdict(list)
    for _, event, seq in known.ours:
        chain, ended = known.address(event)
        if not ended:
            for key in dict.fromkeys(event.keys):
                open_keys[key].append((seq, chain))
    waits = _matching(c, open_keys, FIRST_WAITS + 1)
    matched: dict[int, int] = defaultdict(int)
    for _, _, key, wait_chain in waits[:FIRST_WAITS]:
        for seq, chain in open_keys[key]:
            matched[seq] += chain is None or chain == wait_chain
    apps = signal(c, [(instance, seq) for instance, seq, _, _ in waits[:FIRST_WAITS]], known.now)
    if len(waits) <= FIRST_WAITS:
        return matched, set(), apps
    left = [(key, max(seq for seq, _ in events), known.now) for key, events in open_keys.items()]
    write(c, "INSERT OR FAIL INTO edda_unmarked (hash, seq, created_at) VALUES", "(?, ?, ?)", left)
    return matched, set(open_keys), apps


def _look_again(c: sqlite3.Connection, known: _Batch, apps: set[str], more: set[bytes]) -> None:
    """What an earlier try has woken is not known any more: all who live may look. And what it has left is added."""
    apps.update(app for (app,) in c.execute("SELECT DISTINCT app FROM edda_workers WHERE dead = 0"))
    for marks, hashes in among(sorted({key for event in known.accepted_before for key in event.keys})):
        left = c.execute(f"SELECT hash FROM edda_unmarked WHERE hash IN {marks}", hashes)
        more.update(key for (key,) in left)


def _matching(
    c: sqlite3.Connection, keys: dict[bytes, list[tuple[int, str | None]]], limit: int
) -> list[tuple[str, int, bytes, str]]:
    """Waits that one of these events is for: by hash, and where all with that hash are addressed by chain, too."""
    query = (
        "SELECT instance_id, seq, hash, chain FROM edda_waits INDEXED BY edda_waits_hash "
        "WHERE {} IN {} AND kind = 'event' AND due = 0 LIMIT ?"
    )
    anybody = [key for key, events in keys.items() if any(chain is None for _, chain in events)]
    addressed = {
        (key, chain)
        for key, events in keys.items()
        if all(chain is not None for _, chain in events)
        for _, chain in events
        if chain is not None
    }
    waits: list[tuple[str, int, bytes, str]] = []
    for marks, hashes in among(anybody):
        waits += c.execute(query.format("hash", marks), [*hashes, limit - len(waits)])
    for marks, values in pairs(sorted(addressed)):
        waits += c.execute(query.format("(hash, chain)", marks), [*values, limit - len(waits)])
    return waits


def _start(c: sqlite3.Connection, known: _Batch, apps: set[str]) -> dict[int, int]:
    """Instances started per event; their apps are added. Of events with one live key the first one starts."""
    starts: list[NewInstance] = [
        replace(new, start_event=seq) for _, event, seq in known.ours for new in event.starts
    ]
    counts: dict[int, int] = defaultdict(int)
    if not insert_instances(c, starts, known.now):
        return counts
    for marks, ids in among([new.id for new in starts]):
        # A sequence number is given once: the row that carries one of ours was inserted here.
        rows = c.execute(
            f"SELECT app, start_event FROM edda_instances WHERE start_event > ? AND id IN {marks}",
            [known.last_seq, *ids],
        )
        for app, seq in rows:
            apps.add(app)
            counts[seq] += 1
    return counts
