"""Publish from plain application code, in the user's own SQLAlchemy transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, SessionTransaction, scoped_session

from edda.attributes import ExtensionValue
from edda.outbox.message import message
from edda.outbox.outlets import destinations_of, tell_outlets
from edda.storage.core.sessions import enqueue
from edda.storage.core.traits import traits_of
from edda.storage.rows import OutboxMessage

_MARK = "edda_outbox"


async def publish(
    session: AsyncSession | async_scoped_session[AsyncSession],
    event_type: str,
    event_source: str,
    data: Any,
    *,
    key: object = None,
    id: str | None = None,
    subject: str | None = None,
    time: str | None = None,
    extensions: Mapping[str, ExtensionValue] | None = None,
    content_type: str | None = None,
    destination: str | None = None,
) -> str:
    """Add an event to the outbox on this session; it leaves if, and only if, the session commits. Returns its id.

    The session must be on the database that holds Edda's tables. ``key``: events of one key leave in order. ``data``:
    JSON values, Pydantic models, dataclasses; bytes (and text of a ``content_type`` that is not JSON) go as they are.
    ``id`` defaults to a new UUIDv7, ``time`` to now. ``destination`` defaults to where the app that is open in this
    process sends events of this type, or to ``"default"`` where none is open.

    Raises PayloadError (nothing written) naming what cannot be stored; ConfigurationError where several apps are open
    in this process and send this type to different destinations.
    """
    built = _built(
        event_type, event_source, data, key, id, subject, time, extensions, content_type, destination
    )
    connection = await session.connection()
    await connection.run_sync(_write, built)
    _watch(session.sync_session if isinstance(session, AsyncSession) else session.registry().sync_session)
    return built[0].event_id


def publish_sync(
    session: Session | scoped_session[Session],
    event_type: str,
    event_source: str,
    data: Any,
    *,
    key: object = None,
    id: str | None = None,
    subject: str | None = None,
    time: str | None = None,
    extensions: Mapping[str, ExtensionValue] | None = None,
    content_type: str | None = None,
    destination: str | None = None,
) -> str:
    """The same on a sync session."""
    built = _built(
        event_type, event_source, data, key, id, subject, time, extensions, content_type, destination
    )
    _write(session.connection(), built)
    _watch(session if isinstance(session, Session) else session.registry())
    return built[0].event_id


def _built(
    event_type: str,
    event_source: str,
    data: Any,
    key: object,
    id_: str | None,
    subject: str | None,
    time: str | None,
    extensions: Mapping[str, ExtensionValue] | None,
    content_type: str | None,
    destination: str | None,
) -> list[OutboxMessage]:
    """One message per destination, with one id."""
    first = message(
        event_type,
        event_source,
        data,
        id=id_,
        key=key,
        subject=subject,
        time=time,
        extensions=extensions,
        content_type=content_type,
    )
    going = destinations_of(event_type) if destination is None else [destination]
    return [replace(first, destination=name) for name in going]


def _write(connection: sa.Connection, messages: Sequence[OutboxMessage]) -> None:
    enqueue(connection, messages, traits_of(connection).now(connection))


def _watch(session: Session) -> None:
    """When the session's outermost transaction ends, relays may look. Once per session."""
    if not session.info.get(_MARK):
        session.info[_MARK] = True
        sa.event.listen(session, "after_transaction_end", _ended)


def _ended(session: Session, transaction: SessionTransaction) -> None:
    del session
    if transaction.parent is None:
        tell_outlets()
