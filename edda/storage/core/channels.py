"""Channels: how each is read, and of a competing one how far."""

from __future__ import annotations

import sqlalchemy as sa

from edda.storage.core.traits import Traits
from edda.storage.core.values import event_row
from edda.storage.rows import EventRow
from edda.storage.schema import accept, channels, events


def join(c: sa.Connection, traits: Traits, channel: str, mode: str) -> tuple[str, int]:
    """The channel's mode (this one, if it is new), and the last accept sequence."""
    traits.insert_ignoring(c, channels, [{"channel": channel, "mode": mode, "position": 0}])
    found = c.execute(sa.select(channels.c.mode).where(channels.c.channel == channel)).scalar_one()
    last = c.execute(sa.select(accept.c.last_seq).where(accept.c.id == 1)).scalar_one()
    return str(found), int(last)


def take(c: sa.Connection, traits: Traits, channel: str) -> EventRow | int:
    """The first message that nobody has taken, under the channel's lock: it is the caller's if this is committed.

    The channel's position where there is none.
    """
    here = channels.c.channel == channel
    select = sa.select(channels.c.channel, channels.c.position).where(here)
    row = c.execute(traits.lock_rows(select)).one_or_none()
    if row is None:
        return 0
    next_one = (
        sa.select(events)
        .where(events.c.type == channel, events.c.seq > row.position, events.c.addressee.is_(None))
        .order_by(events.c.seq)
        .limit(1)
    )
    found = c.execute(next_one).one_or_none()
    if found is None:
        return int(row.position)
    c.execute(sa.update(channels).where(here).values(position=found.seq))
    return event_row(found)
