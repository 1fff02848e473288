"""Accept, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from edda.errors import StaleRoutingError
from edda.storage import schema
from edda.storage.memory.tables import Letter, Tables, check_keys, view
from edda.storage.rows import (
    DEAF,
    AcceptBatch,
    AcceptResult,
    EventResult,
    EventRow,
    NewEvent,
    Verdict,
    WaitKind,
)

FIRST_WAITS = 1_000

Ours = list[tuple[int, NewEvent, int]]  # place in the batch, event, its sequence number


def accept(t: Tables, batch: AcceptBatch) -> AcceptResult:
    """The numbers are those of the contract."""
    if batch.routing_version != t.version:  # (1)
        raise StaleRoutingError(
            f"the batch was computed for routing version {batch.routing_version}, the store is at {t.version}. "
            "Nothing was written; read the routing again and recompute the batch."
        )
    t.now = max(t.now, t.last_accepted_at)
    repeated = any(batch.batch_id == batch_id for _, _, batch_id in t.identities.values())
    repeated = repeated or any(batch.batch_id == batch_id for batch_id, _ in t.letters)
    stale = _advance(t, batch, repeated)
    results, ours = _sort_out(t, batch, stale)
    woken, left = _again(t, batch, results)
    matched, more, apps = _store_and_match(t, ours)
    apps, more = apps | woken, more | left
    for place, event, seq in ours:
        starts = [new for new in event.starts if t.insert(replace(new, start_event=seq))]  # (6)
        apps |= {new.app for new in starts}
        wanted = matched[seq] or event.starts or not more.isdisjoint(event.keys)
        verdict = Verdict.ACCEPTED if wanted else Verdict.UNMATCHED
        results[place] = EventResult(verdict, seq, matched[seq], len(starts))
    if not repeated:  # (7)
        letters = enumerate(batch.poison, 1)
        kept = [(at, one) for at, one in letters if one.position not in stale]
        t.letters |= {(batch.batch_id, at): Letter(t.next_id(), t.now, one) for at, one in kept}
    return AcceptResult(tuple(results), frozenset(apps), tuple(sorted(more)), stale)


def _advance(t: Tables, batch: AcceptBatch, repeated: bool) -> dict[int, int]:
    """(2) What an earlier try of this batch has moved is where it should be."""
    stale = {}
    for place, p in enumerate(batch.positions):
        key = p.cluster, p.group, p.topic, p.partition
        expected = p.next_offset if repeated else p.fetched_from
        if t.positions.get(key, expected) != expected:
            stale[place] = t.positions[key]
        else:
            t.positions[key] = p.next_offset
    return stale


def _sort_out(t: Tables, batch: AcceptBatch, stale: dict[int, int]) -> tuple[list[EventResult], Ours]:
    """(3), and the sequence numbers of (4)."""
    known = dict(t.identities)
    results: list[EventResult] = []
    ours: Ours = []
    seen: set[bytes] = set()
    for place, event in enumerate(batch.events):
        data_hash, seq, batch_id = known.get(event.digest, (b"", 0, b""))
        if batch_id == batch.batch_id and event.digest not in seen:
            results.append(EventResult(Verdict.ACCEPTED, seq))
        elif event.position in stale:
            results.append(EventResult(Verdict.STALE_POSITION))
            continue
        elif seq:
            same = data_hash == event.data_hash
            results.append(EventResult(Verdict.DUPLICATE if same else Verdict.CONFLICT, seq))
        else:
            t.last_seq, t.last_accepted_at = t.last_seq + 1, t.now
            known[event.digest] = event.data_hash, t.last_seq, batch.batch_id
            ours.append((place, event, t.last_seq))
            results.append(EventResult(Verdict.UNMATCHED, t.last_seq))
        seen.add(event.digest)
    t.identities = known
    return results, ours


def _again(t: Tables, batch: AcceptBatch, results: Sequence[EventResult]) -> tuple[set[str], set[bytes]]:
    """Of events that an earlier try has accepted: the apps that may have been woken, and the hashes it has left."""
    keys = [
        event.keys
        for event, result in zip(batch.events, results, strict=True)
        if result.verdict is Verdict.ACCEPTED
    ]
    apps = {worker.app for worker in t.workers.values() if not worker.dead} if keys else set()
    return apps, {key for key, _ in t.unmarked} & set(chain.from_iterable(keys))


def _store_and_match(t: Tables, ours: Ours) -> tuple[dict[int, int], set[bytes], set[str]]:
    """(4) and (5): waits matched per event, hashes with more of them, apps woken."""
    matched = {seq: 0 for _, _, seq in ours}
    due: dict[tuple[str, int], None] = {}
    last: dict[bytes, int] = {}  # of each hash
    overflows = False
    for _, event, seq in ours:
        check_keys(event, schema.events)
        addressee, ended = _addressee(t, event)
        t.events[seq] = view(EventRow, event, seq=seq, addressee=addressee, accepted_at=t.now)
        for key in event.keys:
            t.keys[key] = t.keys.get(key, frozenset()) | {(addressee or "", seq)}
        if ended:
            continue
        last |= dict.fromkeys(event.keys, seq)
        for wait in _waiting(t, event.keys, addressee):
            if wait in due or len(due) < FIRST_WAITS:
                due[wait] = None
                matched[seq] += 1
            else:
                overflows = True
    more = last if overflows else {}
    t.unmarked |= dict.fromkeys(more.items(), t.now)
    return matched, set(more), t.signal(due)


def _addressee(t: Tables, event: NewEvent) -> tuple[str | None, bool]:
    """The chain it is for, and whether that instance has ended."""
    row = None if event.addressee is None else t.instances.get(event.addressee)
    return (event.addressee, False) if row is None else (row.chain, row.state in DEAF)


def _waiting(t: Tables, keys: Sequence[bytes], addressee: str | None) -> list[tuple[str, int]]:
    return sorted(
        key
        for key, wait in t.waits.items()
        if wait.new.kind is WaitKind.EVENT and wait.new.hash in keys and not wait.due
        if addressee in {None, wait.chain}
    )
