"""What the tests of this directory say in few words."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from edda.cloudevent import CloudEvent
from edda.storage.contract import Storage
from edda.storage.schema import event_keys, events
from tests.support.databases import Database


def event(
    id: str = "a-1", *, type: str = "order.created", data: bytes | None = b"{}", **changes: Any
) -> CloudEvent:
    """An event of the shop."""
    return CloudEvent(id, "/shop", type, data, **changes)


def many(count: int, *, prefix: str = "a", **changes: Any) -> list[CloudEvent]:
    """Events that differ in their id."""
    return [event(f"{prefix}-{number}", **changes) for number in range(count)]


async def stored(store: Storage) -> list[str]:
    """The ids of the events in the inbox, in accept order."""
    async with store.engine().connect() as connection:
        return list((await connection.execute(sa.select(events.c.event_id).order_by(events.c.seq))).scalars())


async def keys(store: Storage) -> set[tuple[bytes, int]]:
    """Every (hash, accept sequence)."""
    async with store.engine().connect() as connection:
        rows = await connection.execute(sa.select(event_keys.c.hash, event_keys.c.seq))
        return {(bytes(row.hash), row.seq) for row in rows}


async def refuse_long_content_types(database: Database) -> None:
    """From now on the database itself refuses a value that it took before; nothing else is changed."""
    statement = {
        "sqlite": "CREATE TRIGGER narrow BEFORE INSERT ON edda_events WHEN length(NEW.content_type) > 40 "
        "BEGIN SELECT RAISE(ABORT, 'value too long'); END",
        "postgresql": "ALTER TABLE edda_events ALTER COLUMN content_type TYPE VARCHAR(40)",
    }.get(database.kind, "ALTER TABLE edda_events MODIFY content_type VARCHAR(40)")
    engine = create_async_engine(database.driver_url)
    async with engine.begin() as connection:
        await connection.execute(sa.text(statement))
    await engine.dispose()


#: Longer than the database takes after ``refuse_long_content_types``.
TOO_LONG = "application/json; note=" + "x" * 60
