"""Where the sources with positions stand. Accept moves them on; this reads them, and moves them by hand."""

from __future__ import annotations

import sqlalchemy as sa

from edda.storage.core.traits import traits_of
from edda.storage.schema import source_positions


def of_group(c: sa.Connection, cluster: str, group: str) -> dict[tuple[str, int], int]:
    """(topic, partition) -> next offset."""
    at = source_positions.c
    wanted = sa.select(at.topic, at.partition_id, at.next_offset).where(
        at.cluster == cluster, at.group_id == group
    )
    return {(row.topic, row.partition_id): row.next_offset for row in c.execute(wanted)}


def seek(c: sa.Connection, cluster: str, group: str, topic: str, partition: int, next_offset: int) -> None:
    """Set one, whatever it was."""
    at = source_positions.c
    place = {"cluster": cluster, "group_id": group, "topic": topic, "partition_id": partition}
    traits_of(c).insert_ignoring(c, source_positions, [{**place, "next_offset": next_offset}])
    here = sa.and_(*(at[name] == value for name, value in place.items()))
    c.execute(sa.update(source_positions).where(here).values(next_offset=next_offset))
