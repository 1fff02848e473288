"""Undoing: what a run does once its code has failed, or somebody wants it cancelled, before it ends.

The code is stopped where it stands, and its compensations run instead, the last registered first. That it has come to
this is a record of its own: in replay the code is stopped at the same place, with the same compensations registered.
Each compensation is recorded like an activity, so that after a crash the rest of them runs. One that fails is recorded
too, and the next one runs.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from edda.engine.outcome import Outcome
from edda.errors import NonDeterminismError
from edda.history.codec import decode_exception, encode_exception
from edda.retry import RetryPolicy
from edda.storage.rows import State

if TYPE_CHECKING:
    from edda.engine.attempt import Attempt
    from edda.engine.commands import Command
    from edda.engine.run import Run

log = logging.getLogger("edda.engine")


@dataclass(frozen=True, slots=True)
class Compensation:
    """What undoes one step. ``policy`` None: the app's default."""

    name: str
    invoke: Callable[[Attempt], Awaitable[Any]]
    policy: RetryPolicy | None
    args_hash: bytes


async def compensate(run: Run, stopped: Command, compensations: list[Compensation]) -> None:
    """The program that takes the place of the workflow's code."""
    await stopped.future
    while compensations:
        compensation = compensations.pop()
        try:
            await run.compensation(compensation)
        except NonDeterminismError:
            raise
        except Exception as error:  # noqa: BLE001, it is recorded; what else was done must be undone all the same
            if not run.replaying:
                log.warning(
                    "compensation_failed",
                    extra={"instance_id": run.id, "compensation": compensation.name, "error": str(error)},
                )


def encode_outcome(outcome: Outcome) -> bytes:
    """How the run will end, as the record's payload."""
    error = None if outcome.error is None else from_json(encode_exception(outcome.error))
    output = None if outcome.output is None else from_json(outcome.output)
    return to_json({"state": outcome.state, "error": error, "output": output})


def decode_outcome(payload: bytes) -> Outcome:
    """The same again."""
    described = from_json(payload)
    error = None if described["error"] is None else decode_exception(to_json(described["error"]))
    output = None if described["output"] is None else to_json(described["output"])
    return Outcome(State(described["state"]), error, output)


def cancelled(detail: bytes | None) -> Outcome:
    """The end that a request to cancel asks for."""
    return Outcome(State.CANCELLED, None, detail or b"{}")
