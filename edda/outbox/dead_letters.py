"""Outbox rows that were given up: list, replay, discard. Rows of their ordering key stay behind them until then."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from edda.outbox.outlets import tell_outlets
from edda.storage.core import letters


@dataclass(frozen=True, slots=True)
class DeadOutboxRow:
    """A row that no try will deliver as it is."""

    id: int
    destination: str
    type: str
    source: str
    event_id: str
    ordering_key: str | None
    attempts: int
    reason: str


async def dead_rows(engine: AsyncEngine, limit: int = 100) -> list[DeadOutboxRow]:
    """The oldest first."""
    async with engine.connect() as connection:
        rows = await connection.run_sync(letters.dead, limit)
    return [
        DeadOutboxRow(
            row.id,
            row.destination,
            row.type,
            row.source,
            row.event_id,
            row.ordering_key,
            row.attempts,
            row.reason or "",
        )
        for row in rows
    ]


async def replay(engine: AsyncEngine, row_id: int) -> bool:
    """Try a dead row again, in front of those of its key; False if there is no such dead row."""
    async with engine.begin() as connection:
        found = await connection.run_sync(letters.replay, row_id)
    tell_outlets()
    return found


async def discard(engine: AsyncEngine, row_id: int) -> bool:
    """Give a dead row up for good and let those of its key go on; False if there is no such dead row."""
    async with engine.begin() as connection:
        found = await connection.run_sync(letters.discard, row_id)
    tell_outlets()
    return found
