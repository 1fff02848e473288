"""What is written on users' own open transactions: a turn, outbox rows, new instances. Never committed here."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from edda.errors import InstanceExistsError
from edda.storage.core.traits import Traits
from edda.storage.core.values import instance_values, outbox_values, record_values
from edda.storage.rows import Applied, NewInstance, OutboxMessage, Turn, TurnResult
from edda.storage.schema import history, instances, outbox


def apply_turn(c: sa.Connection, traits: Traits, turn: Turn, now: int) -> TurnResult:
    """One turn without waits and release. If it is not APPLIED, the user's transaction is to be rolled back."""
    me = instances.c.id == turn.instance_id
    select = sa.select(instances.c.owner, instances.c.fence, instances.c.signals).where(me)
    row = c.execute(traits.lock_rows(select)).one_or_none()
    if row is None:
        return TurnResult(Applied.LOST, 0)
    seqs = [record.seq for record in turn.records]
    written = sa.select(history.c.seq).where(
        history.c.instance_id == turn.instance_id, history.c.seq.in_(seqs)
    )
    if (row.owner, row.fence) != (turn.owner, turn.fence) or c.execute(written).first() is not None:
        return TurnResult(Applied.LOST, row.signals)
    if turn.records:
        c.execute(
            sa.insert(history),
            [record_values(turn.instance_id, turn.fence, record, now) for record in turn.records],
        )
    enqueue(c, turn.outbox, now)
    children = sorted(turn.children, key=lambda child: child.id)
    traits.insert_ignoring(c, instances, [instance_values(child, now) for child in children])
    if turn.reset_recoveries:
        c.execute(sa.update(instances).where(me).values(recoveries=0))
    return TurnResult(Applied.APPLIED, row.signals)


def record_fence(c: sa.Connection, traits: Traits, instance_id: str, seq: int) -> int | None:
    """The fence that a record was written under. Waits for a commit that is under way though its connection is lost."""
    c.execute(traits.lock_rows(sa.select(instances.c.id).where(instances.c.id == instance_id)))
    # A later statement than the lock's: it sees what was committed meanwhile.
    return c.execute(
        sa.select(history.c.fence).where(history.c.instance_id == instance_id, history.c.seq == seq)
    ).scalar()


def enqueue(c: sa.Connection, messages: Sequence[OutboxMessage], now: int) -> None:
    """Outbox rows, their ids in this order."""
    if messages:
        c.execute(sa.insert(outbox), [outbox_values(message, now) for message in messages])


def insert_instances(c: sa.Connection, new: Sequence[NewInstance], now: int) -> None:
    """All or, with InstanceExistsError, none: the user's transaction goes on as if nothing had been asked of it."""
    if not new:
        return
    try:
        with c.begin_nested():
            in_order = sorted(new, key=lambda instance: instance.id)
            c.execute(sa.insert(instances), [instance_values(instance, now) for instance in in_order])
    except sa.exc.IntegrityError as error:
        raise InstanceExistsError(
            f"an instance with one of the ids {[one.id for one in new]}, or with its live key, exists already. None of "
            "these was started; the transaction is as it was before. Start it under another id, or commit without."
        ) from error
