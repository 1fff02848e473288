"""What the tests of this directory say in few words."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from edda.outbox.message import message
from edda.storage.contract import Storage
from edda.storage.rows import OutboxMessage
from edda.storage.schema import outbox, relay_leases


def row(id: str, key: str | None = None, **changes: Any) -> OutboxMessage:
    """A message; its key is also its subject, so that the sink knows it."""
    return message("order.paid", "/shop", id=id, key=key, **{"subject": key, "data": {"id": id}} | changes)


def keyed(keys: str, count: int) -> list[OutboxMessage]:
    """``a-0, b-0, ..., a-1, b-1, ...``: so many rows of each key, in turns."""
    return [row(f"{key}-{number}", key) for number in range(count) for key in keys]


async def enqueue(store: Storage, *messages: OutboxMessage) -> None:
    """Committed rows."""
    async with store.engine().begin() as connection:
        await store.enqueue_in_session(connection, messages)


async def rows(store: Storage) -> dict[str, tuple[str, int]]:
    """What is left: event id -> (state, attempts)."""
    async with store.engine().connect() as connection:
        found = await connection.execute(sa.select(outbox).order_by(outbox.c.id))
        return {each.event_id: (each.state, each.attempts) for each in found}


async def reasons(store: Storage) -> dict[str, str | None]:
    """Event id -> why it failed last."""
    async with store.engine().connect() as connection:
        found = await connection.execute(sa.select(outbox).order_by(outbox.c.id))
        return {each.event_id: each.reason for each in found}


async def is_empty(store: Storage) -> bool:
    """Whether every row has left."""
    return not await rows(store)


async def lease_holders(store: Storage) -> list[str]:
    """Who holds a lease."""
    async with store.engine().connect() as connection:
        return list((await connection.execute(sa.select(relay_leases.c.owner))).scalars())
