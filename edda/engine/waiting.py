"""The wait row of a command: which events it sees, and until when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edda.engine.commands import EventWait, TimerWait
from edda.storage.rows import NewWait, WaitKind

if TYPE_CHECKING:
    from edda.engine.commands import Command
    from edda.storage.rows import Shape, WaitRow

#: Keyed waits see events accepted this long before their chain's start (clocks of producers and us overlap).
KEYED_GRACE_US = 60_000_000

#: "From the first reach of the wait": later than any event that is accepted already.
_REGISTRATION = 1 << 62


def timer_row(command: Command, wait: TimerWait) -> NewWait:
    """A sleep."""
    return NewWait(
        command.seq, WaitKind.TIMER, command.name, delay_us=wait.delay_us, deadline_us=wait.deadline_us
    )


def event_row(
    command: Command,
    wait: EventWait,
    shape: Shape | None,
    *,
    cursor: int,
    start_event: int,
    chain_started_at: int,
    replaces: WaitRow | None,
) -> NewWait:
    """A wait for an event. One that ``replaces`` its own row keeps that row's deadline, and how far back it sees."""
    since: int | None = None
    deadline_us = None
    if replaces is not None:
        cursor, deadline_us = max(cursor, replaces.cursor), replaces.deadline_us
    elif wait.after is not None:
        cursor = max(cursor, wait.after)
    elif wait.from_registration:
        since = _REGISTRATION
    elif wait.paths:
        since = chain_started_at - (KEYED_GRACE_US if wait.lookback_us is None else wait.lookback_us)
    else:
        since = chain_started_at - (wait.lookback_us or 0)
    return NewWait(
        command.seq,
        WaitKind.EVENT,
        command.name,
        hash=wait.hash,
        shape_id=None if shape is None else shape.id,
        cursor=cursor,
        since_us=since,
        skip=start_event,
        delay_us=wait.timeout_us if replaces is None else None,
        deadline_us=deadline_us,
    )
