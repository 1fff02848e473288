"""Publish from plain application code, in the user's own SQLAlchemy transaction."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from edda.outbox.message import message
from edda.storage.core.traits import traits_of
from edda.storage.core.turns import outbox_values
from edda.storage.rows import OutboxMessage
from edda.storage.schema import outbox


async def publish(
    session: AsyncSession, event_type: str, event_source: str, data: Any, **attributes: Any
) -> str:
    """Add an event to the outbox on this session; it leaves if, and only if, the session commits. Returns the event's id.

    Keyword arguments: ``key`` (ordering key), ``id``, ``subject``, ``time``, ``extensions``, ``content_type``, ``destination``. The session must be
    on the database that holds Edda's tables.
    """
    built = message(event_type, event_source, data, **attributes)
    connection = await session.connection()
    await connection.run_sync(_insert, built)
    return built.event_id


def publish_sync(session: Session, event_type: str, event_source: str, data: Any, **attributes: Any) -> str:
    """The same on a sync session."""
    built = message(event_type, event_source, data, **attributes)
    _insert(session.connection(), built)
    return built.event_id


def _insert(connection: sa.Connection, built: OutboxMessage) -> None:
    now = traits_of(connection).now(connection)
    connection.execute(sa.insert(outbox), [outbox_values(built, now)])
