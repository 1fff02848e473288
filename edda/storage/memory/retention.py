"""What has expired, and who may remove it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from edda.storage.memory.tables import Instance, SweepOf, Tables
from edda.storage.rows import ENDED, Chunk, Expiring, State, Sweep, Swept, WaitKind

#: (place in the order of age, key) of each row that is old enough, and whether something live refers to it.
Old = list[tuple[tuple[int, str], Any, bool]]


def begin(t: Tables, owner: str, lease_us: int, every_us: int) -> Sweep | None:
    """The next number, if it is time."""
    last = max(t.sweeps, default=0)
    row = t.sweeps.get(last)
    if row is not None and row.ended_at is None and row.expires_at > t.now:
        return Sweep(last, owner) if row.owner == owner else None
    if row is not None and row.ended_at is not None and t.now < row.began_at + every_us:
        return None
    if row is not None and row.ended_at is None:
        t.sweeps[last] = replace(row, ended_at=t.now)
    t.sweeps[last + 1] = SweepOf(owner, max(t.now, t.last_accepted_at), t.now + lease_us, t.last_seq)
    return Sweep(last + 1, owner)


def sweep(t: Tables, sweep: Sweep | None, chunk: Chunk, lease_us: int) -> Swept | None:
    """One chunk, under the sweep's right."""
    if sweep is not None:
        row = t.sweeps.get(sweep.id)
        if row is None or row.owner != sweep.owner or row.ended_at is not None or row.expires_at <= t.now:
            return None
        t.sweeps[sweep.id] = replace(row, expires_at=t.now + lease_us)
    find, remove = _HOW[chunk.what]
    old = sorted((one for one in find(t, chunk) if one[0] > _behind(chunk)), key=lambda one: one[0])
    page = old[: chunk.limit]
    if chunk.what is Expiring.EVENTS and page and _fills(t):
        return Swept(0, len(page), None, postponed=True)
    gone = [key for _, key, wanted in page if not wanted]
    for key in () if chunk.dry_run else gone:
        remove(t, key)
    if sweep is not None and not chunk.dry_run:
        row = t.sweeps[sweep.id]
        counts = {**row.removed}
        counts[chunk.what] = counts.get(chunk.what, 0) + len(gone)
        t.sweeps[sweep.id] = replace(row, removed=counts)
    after = page[-1][0] if len(page) == chunk.limit else None
    return Swept(len(gone), len(page) - len(gone), after and (after[0], after[1].lstrip("0")))


def end(t: Tables, sweep: Sweep, forget_us: int) -> None:
    """The newest of those to be forgotten stays."""
    row = t.sweeps.get(sweep.id)
    if row is not None and row.owner == sweep.owner and row.ended_at is None:
        t.sweeps[sweep.id] = replace(row, ended_at=t.now)
    newest = max((one for one, row in t.sweeps.items() if row.began_at <= t.now - forget_us), default=0)
    t.sweeps = {one: row for one, row in t.sweeps.items() if one >= newest}


def _behind(chunk: Chunk) -> tuple[int, str]:
    at, second = chunk.after
    return at, _padded(int(second)) if chunk.what is Expiring.EVENTS and second else second


def _padded(number: int) -> str:
    """So that it sorts as the number does."""
    return f"{number:020d}"


# ---------------------------------------------------------------------------------------------- what is old


def _events(t: Tables, chunk: Chunk) -> Old:
    return [
        ((event.accepted_at, _padded(seq)), seq, _is_wanted(t, seq))
        for seq, event in t.events.items()
        if event.accepted_at < chunk.before
    ]


def _is_wanted(t: Tables, seq: int) -> bool:
    addressee = t.events[seq].addressee
    hashes = {key for key, found in t.keys.items() if any(one == seq for _, one in found)}
    live = {row.live_key for row in t.instances.values() if row.live_key is not None}
    if (addressee is not None and _chain_lives(t, addressee)) or hashes & (
        live | {key for key, _ in t.unmarked}
    ):
        return True
    at_rest = {one for one, row in t.instances.items() if row.state is State.WAITING}
    return any(
        wait.new.kind is WaitKind.EVENT
        and instance_id not in at_rest
        and wait.new.hash in hashes
        and addressee in {None, wait.chain}
        and wait.cursor < seq != wait.new.skip
        for (instance_id, _), wait in t.waits.items()
    )


def _fills(t: Tables) -> bool:
    filling = {one for one, shape in t.shapes.items() if not shape.ready}
    return any(wait.new.shape_id in filling and not wait.due for wait in t.waits.values())


def _chain_lives(t: Tables, chain: str) -> bool:
    return any(row.state not in ENDED and chain in {row.chain, row.new.id} for row in t.instances.values())


def _identities(t: Tables, chunk: Chunk) -> Old:
    until = max((row.last_seq for row in t.sweeps.values() if row.began_at <= chunk.before), default=0)
    return [
        ((seq, ""), digest, seq in t.events) for digest, (_, seq, _) in t.identities.items() if seq <= until
    ]


def _instances(t: Tables, chunk: Chunk) -> Old:
    before = dict(chunk.apps)
    oldest = max(before.values(), default=0)
    return [
        ((row.created_at, one), one, not _is_over(t, row, before.get(row.new.app, 0)))
        for one, row in t.instances.items()
        if row.created_at < oldest
    ]


def _is_over(t: Tables, row: Instance, before: int) -> bool:
    if row.ended_at is None or row.ended_at >= before or _chain_lives(t, row.chain):
        return False
    lives = [other.new for other in t.instances.values() if other.state not in ENDED]
    return all(other.parent != row.new.id and other.id != row.new.parent for other in lives)


def _letters(t: Tables, chunk: Chunk) -> Old:
    return [((one.id, ""), key, False) for key, one in t.letters.items() if one.created_at < chunk.before]


def _dead_rows(t: Tables, chunk: Chunk) -> Old:
    return [
        ((one, ""), one, False)
        for one, row in t.outbox.items()
        if row.state == "dead" and row.created_at < chunk.before
    ]


# ---------------------------------------------------------------------------------------------- removing


def _remove_event(t: Tables, seq: int) -> None:
    del t.events[seq]
    keys = {key: frozenset(one for one in found if one[1] != seq) for key, found in t.keys.items()}
    t.keys = {key: found for key, found in keys.items() if found}


def _remove_identity(t: Tables, digest: bytes) -> None:
    del t.identities[digest]


def _remove_instance(t: Tables, instance_id: str) -> None:
    del t.instances[instance_id]
    t.history = {key: record for key, record in t.history.items() if key[0] != instance_id}


def _remove_letter(t: Tables, key: tuple[bytes, int]) -> None:
    del t.letters[key]


def _discard(t: Tables, one: int) -> None:
    gone = t.outbox.pop(one).message
    t.leases.setdefault(gone.destination, ("", 0))  # it is done under the destination's lease
    for other, row in t.outbox.items():
        same = (row.message.destination, row.message.ordering_key) == (gone.destination, gone.ordering_key)
        if same and gone.ordering_key is not None and row.state == "parked":
            t.outbox[other] = replace(row, state="pending")


_HOW: dict[Expiring, tuple[Callable[[Tables, Chunk], Old], Callable[[Tables, Any], None]]] = {
    Expiring.EVENTS: (_events, _remove_event),
    Expiring.IDENTITIES: (_identities, _remove_identity),
    Expiring.INSTANCES: (_instances, _remove_instance),
    Expiring.LETTERS: (_letters, _remove_letter),
    Expiring.DEAD_ROWS: (_dead_rows, _discard),
}
