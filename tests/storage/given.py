"""What the tests of this directory write, in few words."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edda.storage.contract import Storage
from edda.storage.rows import (
    AcceptBatch,
    AcceptResult,
    Applied,
    EventRow,
    InstanceRow,
    LoadedInstance,
    NewEvent,
    NewInstance,
    NewWait,
    OutboxMessage,
    Record,
    Release,
    State,
    Turn,
    TurnResult,
    Unread,
    WaitKind,
    WaitRow,
)

APP = "shop"
WORKER = "worker-1"
OTHER = "worker-2"

SECOND = 1_000_000
HOUR = 3_600 * SECOND


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


# ---------------------------------------------------------------------------------------------- turns


def record(seq: int, payload: bytes = b"1", **changes: Any) -> Record:
    return replace(Record(seq, seq, "activity", "charge", payload), **changes)


def instance(id: str, **changes: Any) -> NewInstance:
    return replace(NewInstance(id, APP, "order", b'{"of": 1}'), **changes)


def start(id: str, *, records: Sequence[Record] = (), **changes: Any) -> Turn:
    """The turn that inserts the instance; with keywords for the instance."""
    new = instance(id, **{"owner": WORKER} | changes)
    return Turn(id, new.owner or WORKER, 1, 0, start=new, records=list(records))


def turn(id: str, *records: int, **changes: Any) -> Turn:
    """A turn of the first owner with these records."""
    return replace(Turn(id, WORKER, 1, 0, records=[record(seq) for seq in records]), **changes)


def event_wait(seq: int, key: str, **changes: Any) -> NewWait:
    return replace(NewWait(seq, WaitKind.EVENT, "paid", hash=digest(key)), **changes)


def timer(seq: int, **changes: Any) -> NewWait:
    return replace(NewWait(seq, WaitKind.TIMER, "sleep"), **changes)


def park(id: str, *waits: NewWait, **changes: Any) -> Turn:
    return replace(turn(id, waits=list(waits), release=Release.PARK), **changes)


def end(id: str, *records: int, **changes: Any) -> Turn:
    return replace(
        turn(id, *records, release=Release.END, end_state=State.COMPLETED, output=b"42"), **changes
    )


def unread(key: str, after: int, *received: int) -> Unread:
    return Unread(digest(key), after, frozenset(received))


def message(event_id: str, **changes: Any) -> OutboxMessage:
    plain = OutboxMessage(
        "order.placed", "shop", event_id, b'{"subject":"x"}', b'{"n": 1}', "application/json"
    )
    return replace(plain, **changes)


async def flush(store: Storage, *turns: Turn) -> list[TurnResult]:
    return list((await store.flush(turns)).results)


async def applied(store: Storage, *turns: Turn) -> list[Applied]:
    return [result.applied for result in await flush(store, *turns)]


async def started(store: Storage, *ids: str, **changes: Any) -> None:
    """Running instances of the first worker, with fence 1."""
    assert set(await applied(store, *(start(one, **changes) for one in ids))) == {Applied.APPLIED}


async def parked(store: Storage, id: str, *waits: NewWait, **changes: Any) -> None:
    await started(store, id, **changes)
    assert await applied(store, park(id, *waits)) == [Applied.APPLIED]


# ---------------------------------------------------------------------------------------------- events


def event(id: str, *keys: str, **changes: Any) -> NewEvent:
    plain = NewEvent(
        digest=digest(id),
        data_hash=digest("data"),
        type="paid",
        source="bank",
        event_id=id,
        attributes=b'{"subject":"x"}',
        data=b'{"amount": 1}',
        content_type="application/json",
        keys=tuple(digest(key) for key in keys),
    )
    return replace(plain, **changes)


def batch(name: str, *events: NewEvent, version: int = 1, **changes: Any) -> AcceptBatch:
    return AcceptBatch(digest(name)[:16], version, events, **changes)


async def accepted(store: Storage, *events: NewEvent, **changes: Any) -> AcceptResult:
    """A batch of its own, at the routing version of now."""
    version = (await store.routing()).version
    return await store.accept(
        batch("/".join(one.event_id for one in events), *events, version=version, **changes)
    )


# ---------------------------------------------------------------------------------------------- what is there


async def row(store: Storage, id: str) -> InstanceRow:
    found = await store.get_instance(id)
    assert found is not None, id
    return found


async def state(store: Storage, id: str) -> State:
    return (await row(store, id)).state


async def loaded(store: Storage, id: str) -> LoadedInstance:
    return (await store.load([id]))[id]


async def waits(store: Storage, id: str) -> dict[int, WaitRow]:
    return {wait.seq: wait for wait in (await loaded(store, id)).waits}


async def due(store: Storage, id: str) -> list[int]:
    return [seq for seq, wait in (await waits(store, id)).items() if wait.due]


async def first_event(store: Storage, id: str, seq: int) -> EventRow | None:
    return (await waits(store, id))[seq].event


async def recorded(store: Storage, id: str) -> list[int]:
    return [record.seq for record in await store.get_history(id)]


async def outgoing(store: Storage, destination: str = "default") -> list[str]:
    """Ids of the events that a relay gets now."""
    taken = await store.outbox_take(destination, "look", SECOND, 1_000, 1 << 30)
    await store.outbox_release(destination, "look")
    return [one.event_id for one in taken.rows]


async def claimed(store: Storage, worker: str = WORKER, limit: int = 100, **where: Any) -> list[str]:
    options = {"app": APP, "workflows": ["order"]} | where
    return [one.id for one in await store.claim(options["app"], options["workflows"], worker, limit)]
