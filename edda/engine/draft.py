"""What a run has to write: parts, in the order in which they came up, merged into one turn per flush.

A part is written as a whole or refused as a whole. When the database refuses a merged turn, its parts go again one by
one, so that the culprit is alone and its neighbours lose nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from edda.engine.commands import Command
    from edda.storage.rows import NewInstance, NewWait, OutboxMessage, Record, Turn


class Delivery(NamedTuple):
    """A result for the workflow's code."""

    command: Command
    value: Any
    error: BaseException | None


@dataclass(slots=True, eq=False)
class Part:
    """One observed result, or one wait that was reached or dropped, or the start itself."""

    record: Record | None = None
    delivery: Delivery | None = None
    speculative: bool = (
        False  # the code has the result already; no activity may start before this is committed
    )
    wait: NewWait | None = None
    drop_wait: int | None = None
    outbox: Sequence[OutboxMessage] = ()
    start: NewInstance | None = None
    committed: Callable[[], None] | None = None


class Draft:
    """The parts that are not handed to the journal yet."""

    __slots__ = ("_alone", "_parts", "_shut")

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._alone = 0
        self._shut: int | None = None  # shut: so many of the parts may still go

    def __bool__(self) -> bool:
        """Whether there is anything to write."""
        return bool(self._parts)

    @property
    def ready(self) -> bool:
        """Whether there is anything that may go now."""
        return bool(self._parts) if self._shut is None else self._shut > 0

    @property
    def alone(self) -> bool:
        """Whether what ``take`` gives goes alone, without a release."""
        return self._alone > 0

    @property
    def speculative(self) -> bool:
        """Whether the code has seen something that is written here only."""
        return any(part.speculative for part in self._parts)

    @property
    def holds_results(self) -> bool:
        """Whether there is a result that the code has not seen yet."""
        return any(part.delivery is not None and not part.speculative for part in self._parts)

    def add(self, part: Part) -> None:
        """One more."""
        self._parts.append(part)

    def take(self) -> list[Part]:
        """What goes with the next turn: everything that may, or one part while a culprit is looked for."""
        count = len(self._parts) if self._shut is None else self._shut
        if self._alone:
            count = min(count, 1)
            self._alone -= count
        parts, self._parts = self._parts[:count], self._parts[count:]
        if self._shut is not None:
            self._shut -= count
        return parts

    def shut(self) -> None:
        """What comes from now on waits until it is opened again."""
        self._shut = len(self._parts)

    def open(self) -> None:
        """Everything may go."""
        self._shut = None

    def put_back(self, parts: Sequence[Part]) -> None:
        """These were refused together: each goes alone now."""
        self._parts[:0] = parts
        self._alone += len(parts)
        if self._shut is not None:
            self._shut += len(parts)

    def clear(self) -> None:
        """Forget everything: it is not to be trusted."""
        self._parts.clear()
        self._alone = 0
        self._shut = None


def merge(parts: Sequence[Part], turn: Turn) -> None:
    """Add the parts to a turn. A wait that a later part replaces or drops is not written at all."""
    waits: dict[int, NewWait] = {}
    for part in parts:
        if part.record is not None:
            turn.records.append(part.record)
        if part.wait is not None:
            waits[part.wait.seq] = part.wait
        if part.drop_wait is not None:
            waits.pop(part.drop_wait, None)
            turn.drop_waits.append(part.drop_wait)
        if part.outbox:
            turn.outbox.extend(part.outbox)
        if part.start is not None:
            turn.start = part.start
    turn.waits.extend(waits.values())
