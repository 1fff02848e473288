"""Outbox rows that were given up: list, replay, discard. Rows of their ordering key stay behind them until then."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from edda.storage.schema import outbox


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
        rows = await connection.execute(
            sa.select(outbox).where(outbox.c.state == "dead").order_by(outbox.c.id).limit(limit)
        )
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
    return await _move(engine, row_id, discard=False)


async def discard(engine: AsyncEngine, row_id: int) -> bool:
    """Give a dead row up for good and let those of its key go on."""
    return await _move(engine, row_id, discard=True)


async def _move(engine: AsyncEngine, row_id: int, *, discard: bool) -> bool:
    async with engine.begin() as connection:
        row = (
            await connection.execute(
                sa.select(outbox.c.destination, outbox.c.ordering_key).where(
                    outbox.c.id == row_id, outbox.c.state == "dead"
                )
            )
        ).one_or_none()
        if row is None:
            return False
        if not discard:
            # Retrying and due: the relay takes such rows before the pending ones of their key.
            await connection.execute(
                sa.update(outbox).where(outbox.c.id == row_id).values(state="retrying", available_at=0)
            )
            return True
        await connection.execute(sa.delete(outbox).where(outbox.c.id == row_id))
        if row.ordering_key is not None:
            await connection.execute(
                sa.update(outbox)
                .where(
                    outbox.c.destination == row.destination,
                    outbox.c.ordering_key == row.ordering_key,
                    outbox.c.state == "parked",
                )
                .values(state="pending")
            )
        return True
