"""Marking waits due and signalling their instances: what timers and the rest of a large accept have in common."""

from __future__ import annotations

from collections.abc import Sequence

from edda.storage.postgresql.connection import Link, one
from edda.storage.postgresql.rows import call

_MARK_DUE = call("edda_mark_due_1", 3)
_FIRE_TIMERS = call("edda_fire_timers_1", 2)


async def mark_due(
    link: Link, offset_us: int, hashes: Sequence[bytes], limit: int
) -> tuple[frozenset[str], bool]:
    """Waits of these hashes that have an unreceived event and are not due yet."""
    answer = one(await link.fetch(_MARK_DUE, offset_us, sorted(set(hashes)), limit))
    return frozenset(answer["o_apps"] or ()), answer["o_more"]


async def fire_timers(link: Link, offset_us: int, limit: int) -> tuple[frozenset[str], int]:
    """Waits whose deadline has passed."""
    answer = one(await link.fetch(_FIRE_TIMERS, offset_us, limit))
    return frozenset(answer["o_apps"] or ()), answer["o_fired"]
