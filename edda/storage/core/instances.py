"""New instances that nobody owns yet, in a transaction of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from edda.storage.core.traits import Traits
from edda.storage.core.values import chunked, instance_values
from edda.storage.rows import NewInstance
from edda.storage.schema import instances


def insert_instances(c: sa.Connection, traits: Traits, new: Sequence[NewInstance], now: int) -> list[bool]:
    """Whether each was inserted; False where its id or live key was taken, also by one further up in the list."""
    rows: dict[str, dict[str, Any]] = {}
    first: list[int] = []
    for place, instance in enumerate(new):
        if instance.id not in rows:
            rows[instance.id] = instance_values(instance, now)
            first.append(place)
    traits.insert_ignoring(c, instances, sorted(rows.values(), key=lambda row: str(row["id"])))
    # Not by a look before the insert: another transaction could come between. What is here and is not ours has another
    # time or another input.
    inserted: set[str] = set()
    for part in chunked(sorted(rows)):
        for row in c.execute(
            sa.select(instances.c.id, instances.c.input).where(
                instances.c.id.in_(part), instances.c.created_at == now
            )
        ):
            if row.input == rows[row.id]["input"]:
                inserted.add(row.id)
    ours = {place for place in first if new[place].id in inserted}
    return [place in ours for place in range(len(new))]
