"""The process's own view of the next deadline: one timer of the event loop for all parked timers it knows of.

Firing is a statement that anyone may repeat; this only decides when to send it. What another process parked, or what
was missed, comes back with the housekeeping statement (``next_deadline_us``).
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

#: Behind the deadline rather than before it: our idea of the database's clock may be that far off.
_SLACK = 0.001


class Timers:
    """A heap of deadlines (microseconds of the database's clock). ``fire`` is called when the earliest has passed."""

    def __init__(self, now_us: Callable[[], int], fire: Callable[[], None]) -> None:
        self._now_us = now_us
        self._loop = asyncio.get_running_loop()
        self._fire = fire
        self._heap: list[int] = []
        self._known: set[int] = set()
        self._handle: asyncio.TimerHandle | None = None
        self._at = 0

    def add(self, deadline_us: int) -> None:
        """Remember a deadline."""
        if deadline_us not in self._known:
            self._known.add(deadline_us)
            heapq.heappush(self._heap, deadline_us)
            self._arm()

    def _arm(self) -> None:
        if not self._heap or (self._handle is not None and self._at <= self._heap[0]):
            return
        if self._handle is not None:
            self._handle.cancel()
        self._at = self._heap[0]
        delay = max(0.0, (self._at - self._now_us()) / 1_000_000) + _SLACK
        self._handle = self._loop.call_later(delay, self._due)

    def _due(self) -> None:
        self._handle = None
        now = self._now_us()
        fired = False
        while self._heap and self._heap[0] <= now:
            self._known.discard(heapq.heappop(self._heap))
            fired = True
        if fired:
            self._fire()
        self._arm()

    def close(self) -> None:
        """Forget everything."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._heap.clear()
        self._known.clear()
