"""How a run ends: state, result or error, and their bytes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from edda.history.codec import encode, encode_exception
from edda.storage.rows import State


class RecurError(BaseException):
    """Ends a run that goes on as another one. Not an Exception: user code that catches those lets it through."""

    def __init__(self, input: bytes) -> None:
        self.input = input
        super().__init__("the workflow goes on in another run")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a run."""

    state: State
    error: BaseException | None = None
    output: bytes | None = None
    output_type: str | None = None

    def encoded(self) -> tuple[bytes | None, str | None, bytes | None]:
        """``(output, output_type, error)`` as they are stored."""
        error = None if self.error is None or self.state is State.RECURRED else encode_exception(self.error)
        return self.output, self.output_type, error

    def failed(self) -> Outcome:
        """The same, but never completed: its result could not be stored."""
        ended_well = self.state in {State.COMPLETED, State.RECURRED}
        return replace(self, state=State.FAILED) if ended_well else self


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
    if isinstance(error, RecurError):
        return Outcome(State.RECURRED, error)
    if error is not None:
        return Outcome(State.FAILED, error)
    try:
        output, output_type = encode(task.result(), f"result of workflow {workflow!r}")
    except ValueError as unstorable:
        return Outcome(State.FAILED, unstorable)
    return Outcome(State.COMPLETED, None, output, output_type)
