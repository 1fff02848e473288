"""Registering shapes before their first use, outside the journal: a big backfill delays its own waits alone.

Three steps, each repeatable by anyone: commit the shape as filling (from now on accepts hash for it), backfill older
events in chunks without a lock, then mark it ready and its waits due.
"""

from __future__ import annotations

from collections.abc import Callable

from edda.cloudevent import event_of
from edda.inbox.shapes import event_hash, parsed_data
from edda.storage.contract import Storage
from edda.storage.rows import Shape

_CHUNK = 500


class Shapes:
    """The shapes that this process has registered."""

    def __init__(self, store: Storage) -> None:
        self._store = store
        self._known: dict[tuple[str, tuple[str, ...]], Shape] = {}
        self.on_woken: Callable[[frozenset[str]], None] = lambda _: None

    def cached(self, pattern: str, paths: tuple[str, ...]) -> Shape | None:
        """A shape that is registered (and, unless another process fills it, ready)."""
        return self._known.get((pattern, paths))

    async def ensure(self, pattern: str, paths: tuple[str, ...]) -> Shape:
        """Register and backfill; raises StorageUnavailableError, and may then be called again."""
        shape = await self._store.register_shape(pattern, paths)
        if not shape.ready:
            await self._backfill(shape)
        self._known[pattern, paths] = shape
        return shape

    async def _backfill(self, shape: Shape) -> None:
        after = 0
        while True:
            rows = await self._store.events_of_pattern(shape.pattern, after, shape.backfill_until, _CHUNK)
            keys: list[tuple[bytes, str, int]] = []
            for row in rows:
                event = event_of(row)
                found = event_hash(shape, event, parsed_data(event))
                if found is not None:
                    keys.append((found, row.addressee or "", row.seq))
            done = len(rows) < _CHUNK
            woken = await self._store.backfill(shape.id, keys, done)
            if done:
                self.on_woken(woken)
                return
            after = rows[-1].seq
