"""How a run ends: state, result or error, and their bytes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from edda.history.codec import encode, encode_exception
from edda.storage.rows import State


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a run."""

    state: State
    error: BaseException | None = None
    output: bytes | None = None
    output_type: str | None = None

    def encoded(self) -> tuple[bytes | None, str | None, bytes | None]:
        """``(output, output_type, error)`` as they are stored."""
        return self.output, self.output_type, None if self.error is None else encode_exception(self.error)

    def failed(self) -> Outcome:
        """The same, but never completed: its result could not be stored."""
        return replace(self, state=State.FAILED) if self.state is State.COMPLETED else self


def outcome_of_task(task: asyncio.Task[Any] | None, workflow: str) -> Outcome:
    """What became of the workflow's own code."""
    if task is None or not task.done():
        return Outcome(
            State.FAILED,
            RuntimeError(
                f"workflow {workflow!r} awaits something that nothing will ever end (not an activity, wait or timer)"
            ),
        )
    if task.cancelled():
        return Outcome(State.FAILED, asyncio.CancelledError("the workflow was cancelled from within"))
    error = task.exception()
    if error is not None:
        return Outcome(State.FAILED, error)
    try:
        output, output_type = encode(task.result(), f"result of workflow {workflow!r}")
    except ValueError as unstorable:
        return Outcome(State.FAILED, unstorable)
    return Outcome(State.COMPLETED, None, output, output_type)
