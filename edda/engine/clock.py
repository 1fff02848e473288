"""The time that a workflow's code sees: the same in the first run and in every replay, without a row of its own.

Each record is stamped when its result is observed, before it is written and before the code sees it; the stamp is what
the store keeps as ``recorded_at``. So live code and replay read the same number, also where the code sees a result
before its commit (an event, a fired timer, a transaction block) and where the answer to a commit is lost and the flush
sent again, for which the time of the flush would be another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edda.storage.rows import Record


class Clock:
    """Of one run. Never goes back, whoever's estimate of the database's clock a stamp comes from."""

    __slots__ = ("_last", "_stamps", "now_us")

    def __init__(self) -> None:
        self.now_us = 0
        self._last = 0
        self._stamps: dict[int, int] = {}

    def begin(self, started_us: int) -> None:
        """The code begins: until the first result it is the time of the start."""
        self.now_us = self._last = started_us

    def stamp(self, pos: int, now_us: int, not_before: int) -> int:
        """The time of the record at this place. ``not_before``: what it follows from, a deadline or an acceptance."""
        self._last = max(self._last, now_us, not_before)
        self._stamps[pos] = self._last
        return self._last

    def delivered(self, pos: int) -> None:
        """The code is given the result at this place."""
        self.now_us = self._stamps.pop(pos)

    def skipped(self, pos: int) -> None:
        """There is no result at this place after all."""
        self._stamps.pop(pos, None)

    def replayed(self, record: Record) -> None:
        """The code is given what another run, or an earlier life of this one, has recorded."""
        self.now_us = self._last = max(self._last, record.recorded_at)
