"""``ctx.patched``: which way a run goes where its code was changed while instances were alive.

A run that comes to the change anew goes the new way and leaves a marker, a record that answers no command. A run that
has been there before, on the old code, is known by what it left behind: a record or a wait of a command that is issued
later than this point. Without either it comes to the change anew, whatever ran before: nothing of that was kept.

Markers have numbers of their own, below zero. So they take none from the commands, and the call may be deleted, marker
or not, once no instance needs the old way any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from edda.history import records as kinds

if TYPE_CHECKING:
    from edda.storage.rows import Record, WaitRow


class Patches:
    """The answers of one run; each is given once and stays."""

    __slots__ = ("_answers", "_traced", "markers")

    def __init__(self) -> None:
        self._answers: dict[str, bool] = {}
        self._traced = 0  # the last command that left anything
        self.markers = 0

    def seen(self, history: Iterable[Record], waits: Iterable[WaitRow]) -> None:
        """What an earlier life of this run has left."""
        for record in history:
            if record.kind == kinds.PATCH:
                self._answers[record.name] = True
                self.markers += 1
            else:
                self._traced = max(self._traced, record.seq)
        self._traced = max(self._traced, *(wait.seq for wait in waits), 0)

    def known(self, change: str, issued: int) -> bool | None:
        """The answer where ``issued`` commands lie behind; None: it comes here anew, and a marker is to be written."""
        if change not in self._answers and self._traced > issued:
            self._answers[change] = False
        return self._answers.get(change)

    def marked(self, change: str) -> int:
        """The new way from now on; the number of the marker."""
        self._answers[change] = True
        self.markers += 1
        return -self.markers
