"""Invariant 11: the code does again what the history says it did, or the instance is paused for a code fix."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from edda.errors import NonDeterminismError

if TYPE_CHECKING:
    from edda.engine.commands import Command

log = logging.getLogger("edda.engine")


def difference(
    command: Command,
    kind: str,
    name: str,
    args_hash: bytes | None,
    *,
    strict: bool,
    instance_id: str,
    workflow: str,
) -> tuple[str, str] | None:
    """``(expected, got)`` where a command is not what was recorded or registered under its number.

    Kind and name are compared strictly. Other arguments count only with ``strict``; else they are logged, because a
    new optional field must not pause a fleet.
    """
    if (kind, name) != (command.kind, command.name):
        return f"{kind} {name!r}", f"{command.kind} {command.name!r}"
    if args_hash is None or command.args_hash is None or args_hash == command.args_hash:
        return None
    if strict:
        return f"{kind} {name!r} with the recorded arguments", f"{kind} {name!r} with other arguments"
    log.warning(
        "arguments_changed_on_replay",
        extra={"instance_id": instance_id, "workflow": workflow, "seq": command.seq, "call": name},
    )
    return None


def mismatch(instance_id: str, workflow: str, seq: int, expected: str, got: str) -> NonDeterminismError:
    """The error, with the line of the user's code that is running now."""
    return NonDeterminismError(
        f"instance {instance_id!r} of workflow {workflow!r}: command {seq} is {expected} in the history, "
        f"but the code does {got} at {_user_line()}. Nothing was written; the instance is paused. Deploy code that "
        "does again what the history says (or guard the change with ctx.patched), then: await app.handle(id).resume()."
    )


def _user_line() -> str:
    """File and line of the code outside Edda (and asyncio) that is running now."""
    frame = sys._getframe(1)  # noqa: SLF001, there is no public way to a frame without building a whole traceback
    here = __name__.partition(".")[0]
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] not in {here, "asyncio"}:
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        next_frame = frame.f_back
        if next_frame is None:
            break
        frame = next_frame
    return "its end"
