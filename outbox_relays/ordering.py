"""Lanes: rows of one ordering key one behind the other, everything else beside them."""

from __future__ import annotations

from collections.abc import Iterable

from edda.storage.rows import OutboxRow


def lanes(rows: Iterable[OutboxRow]) -> list[list[OutboxRow]]:
    """A lane per ordering key, in row order; rows without a key have a lane each."""
    keyed: dict[str, list[OutboxRow]] = {}
    found: list[list[OutboxRow]] = []
    for row in rows:
        if row.ordering_key is None:
            found.append([row])
        elif row.ordering_key in keyed:
            keyed[row.ordering_key].append(row)
        else:
            keyed[row.ordering_key] = lane = [row]
            found.append(lane)
    return found
