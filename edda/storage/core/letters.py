"""Dead rows of the outbox: listed, tried again, given up. Cold statements, on any engine."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from edda.storage.core.traits import traits_of
from edda.storage.schema import outbox, relay_leases


def dead(c: sa.Connection, limit: int) -> list[sa.Row[Any]]:
    """The oldest first."""
    select = sa.select(outbox).where(outbox.c.state == "dead").order_by(outbox.c.id).limit(limit)
    return list(c.execute(select))


def replay(c: sa.Connection, row_id: int) -> bool:
    """Retrying, and due: relays take such rows before the pending ones of their key. False: no such dead row."""
    if _locked(c, row_id) is None:
        return False
    c.execute(sa.update(outbox).where(outbox.c.id == row_id).values(state="retrying", available_at=0))
    return True


def discard(c: sa.Connection, row_id: int) -> bool:
    """Delete the row; what was parked behind it flows again. False: no such dead row."""
    row = _locked(c, row_id)
    if row is None:
        return False
    c.execute(sa.delete(outbox).where(outbox.c.id == row_id))
    if row.ordering_key is not None:
        behind = sa.and_(
            outbox.c.destination == row.destination,
            outbox.c.ordering_key == row.ordering_key,
            outbox.c.state == "parked",
        )
        c.execute(sa.update(outbox).where(behind).values(state="pending"))
    return True


def _locked(c: sa.Connection, row_id: int) -> Any:
    """The dead row, under the lock of its destination's lease.

    A relay that takes rows at the same time parks what stands behind a dead one: without its lock it could park a row
    behind one that is gone.
    """
    wanted = sa.select(outbox).where(outbox.c.id == row_id, outbox.c.state == "dead")
    row = c.execute(wanted).one_or_none()
    if row is None:
        return None
    traits = traits_of(c)
    traits.insert_ignoring(c, relay_leases, [{"destination": row.destination, "owner": "", "expires_at": 0}])
    lease = sa.select(relay_leases.c.destination).where(relay_leases.c.destination == row.destination)
    c.execute(traits.lock_rows(lease)).all()
    return c.execute(wanted).one_or_none()
