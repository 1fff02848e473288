"""What the tests write, in few words."""

import hashlib
from collections.abc import Sequence

from edda.storage.contract import Storage
from edda.storage.rows import (
    AcceptBatch,
    Applied,
    NewDeadLetter,
    NewEvent,
    NewInstance,
    NewWait,
    OutboxMessage,
    PositionAdvance,
    Record,
    Release,
    State,
    Turn,
    WaitKind,
)

APP = "shop"
WORKFLOW = "order"

#: Longer than any test.
LEASE_US = 120_000_000


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def record(seq: int, payload: bytes = b"1", *, pos: int | None = None) -> Record:
    return Record(seq, seq if pos is None else pos, "activity", "charge", payload)


def instance(id: str, *, live_key: str | None = None, owner: str | None = None) -> NewInstance:
    key = None if live_key is None else digest(live_key)
    return NewInstance(id, APP, WORKFLOW, b"{}", owner=owner, live_key=key)


def start(id: str, *, owner: str = "a", live_key: str | None = None) -> Turn:
    """The instance, owned with fence 1, and its first record (seq 1)."""
    return Turn(id, owner, 1, 0, start=instance(id, live_key=live_key, owner=owner), records=[record(1)])


def step(
    id: str,
    *seqs: int,
    owner: str = "a",
    fence: int = 1,
    signals: int = 0,
    payload: bytes = b"1",
    waits: Sequence[NewWait] = (),
    release: Release = Release.KEEP,
) -> Turn:
    """Records, and what else is named."""
    records = [record(seq, payload) for seq in seqs]
    turn = Turn(id, owner, fence, signals, records=records, waits=list(waits), release=release)
    if release is Release.END:
        turn.end_state, turn.output = State.COMPLETED, b'"done"'
    return turn


def wait(
    seq: int,
    key: str,
    *,
    cursor: int = 0,
    skip: int = 0,
    shape_id: int | None = None,
    delay_us: int | None = None,
) -> NewWait:
    return NewWait(
        seq,
        WaitKind.EVENT,
        "paid",
        hash=digest(key),
        shape_id=shape_id,
        cursor=cursor,
        skip=skip,
        delay_us=delay_us,
    )


def timer(seq: int, delay_us: int) -> NewWait:
    return NewWait(seq, WaitKind.TIMER, "sleep", delay_us=delay_us)


def park(
    id: str,
    seq: int,
    key: str,
    *,
    owner: str = "a",
    fence: int = 1,
    signals: int = 0,
    cursor: int = 0,
    delay_us: int | None = None,
) -> Turn:
    """One record, and a wait for this key (both with ``seq``), and the end of the ownership."""
    waits = [wait(seq, key, cursor=cursor, delay_us=delay_us)]
    return step(id, seq, owner=owner, fence=fence, signals=signals, waits=waits, release=Release.PARK)


def message(event_id: str) -> OutboxMessage:
    return OutboxMessage("shipped", "shop", event_id, b"{}", b"{}", "application/json")


def event(
    id: str,
    *keys: str,
    source: str = "bank",
    data: str = "data",
    addressee: str | None = None,
    starts: Sequence[NewInstance] = (),
    position: int | None = None,
) -> NewEvent:
    return NewEvent(
        digest=digest(f"{len(source)}{source}{id}"),
        data_hash=digest(data),
        type="paid",
        source=source,
        event_id=id,
        attributes=b"{}",
        data=data.encode(),
        content_type="application/json",
        addressee=addressee,
        keys=tuple(digest(key) for key in keys),
        starts=tuple(starts),
        position=position,
    )


def batch(
    name: str,
    *events: NewEvent,
    version: int = 1,
    poison: Sequence[NewDeadLetter] = (),
    positions: Sequence[PositionAdvance] = (),
) -> AcceptBatch:
    """``name`` stands for the batch's random id: the same name is the same batch sent again."""
    return AcceptBatch(digest(name)[:16], version, events, tuple(poison), tuple(positions))


def advance(fetched_from: int, next_offset: int, *, partition: int = 0) -> PositionAdvance:
    return PositionAdvance("kafka", "shop", "payments", partition, fetched_from, next_offset)


async def park_many(store: Storage, count: int) -> list[str]:
    """Instances of worker "a" that wait for "key"."""
    names = [f"i{number:04}" for number in range(count)]
    for at in range(0, count, 250):
        some = names[at : at + 250]
        await store.flush([start(name) for name in some])
        results = (await store.flush([park(name, 2, "key") for name in some])).results
        assert {result.applied for result in results} == {Applied.APPLIED}
    return names
