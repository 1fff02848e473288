"""What the tests of this directory write, in few words."""

import hashlib
from collections.abc import Sequence

import sqlalchemy as sa

from edda.storage.mysql.connection import Link, Row
from edda.storage.mysql.statements import Statement, Value
from edda.storage.mysql.store import MySQLStore
from edda.storage.rows import (
    AcceptBatch,
    NewEvent,
    NewInstance,
    NewWait,
    Record,
    Release,
    Turn,
    WaitKind,
)

APP = "shop"
WORKER = "worker-1"


def new_store(url: str) -> MySQLStore:
    return MySQLStore(sa.make_url(url))


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def record(seq: int, payload: bytes = b"1") -> Record:
    return Record(seq, seq, "activity", "charge", payload)


def start(id: str, *, live_key: str | None = None, owner: str = WORKER) -> Turn:
    new = NewInstance(
        id, APP, "order", b"{}", owner=owner, live_key=None if live_key is None else digest(live_key)
    )
    return Turn(id, owner, 1, 0, start=new, records=[record(1)])


def step(id: str, seq: int, *, fence: int = 1, owner: str = WORKER, payload: bytes = b"1") -> Turn:
    return Turn(id, owner, fence, 0, records=[record(seq, payload)])


def park(id: str, seq: int, key: str, *, cursor: int = 0) -> Turn:
    wait = NewWait(seq, WaitKind.EVENT, "paid", hash=digest(key), cursor=cursor)
    return Turn(id, WORKER, 1, 0, records=[record(seq)], waits=[wait], release=Release.PARK)


def event(id: str, *keys: str, starts: Sequence[NewInstance] = ()) -> NewEvent:
    return NewEvent(
        digest=digest(id),
        data_hash=digest("data"),
        type="paid",
        source="shop",
        event_id=id,
        attributes=b"{}",
        data=b"{}",
        content_type="application/json",
        keys=tuple(digest(key) for key in keys),
        starts=tuple(starts),
    )


def batch(name: str, *events: NewEvent) -> AcceptBatch:
    return AcceptBatch(digest(name)[:16], 1, events)


async def rows(link: Link, query: str, *values: Value) -> Sequence[Row]:
    (result,) = await link.run(Statement(query, values))
    return result.rows


async def waiting_connection(link: Link) -> int | None:
    """The number of another connection to this database that is in the middle of a statement."""
    found = await rows(
        link,
        "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND command = 'Query' "
        "AND id <> CONNECTION_ID()",
    )
    return int(found[0][0]) if found else None
