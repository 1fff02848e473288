"""States of an instance and the moves between them: one table. The SQL guards and the documented diagram follow it."""

from __future__ import annotations

from typing import Final

from edda.storage.rows import ENDED, State

MOVES: Final[dict[State, frozenset[State]]] = {
    State.RUNNABLE: frozenset({State.RUNNING}),
    State.RUNNING: frozenset(
        {
            State.RUNNABLE,  # re-queued after its worker died, or given back at shutdown
            State.WAITING,
            State.PAUSED,
            State.COMPLETED,
            State.FAILED,
            State.CANCELLED,
            State.DEAD,
        }
    ),
    State.WAITING: frozenset({State.RUNNABLE}),
    State.PAUSED: frozenset({State.RUNNABLE}),
    State.COMPLETED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
    State.DEAD: frozenset(),
}

__all__ = ["ENDED", "MOVES", "State"]
