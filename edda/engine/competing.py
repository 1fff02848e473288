"""Taking a message of a competing channel: the position moves, and the record is written, in one transaction."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from edda.engine.observed import encode_event
from edda.engine.session import ActivitySession, commit_record
from edda.errors import OwnershipLostError
from edda.history import records as kinds
from edda.storage.rows import Turn

if TYPE_CHECKING:
    from edda.engine.commands import Command, EventWait
    from edda.engine.run import Run
    from edda.storage.rows import WaitRow

log = logging.getLogger("edda.engine")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 5.0


async def take_message(run: Run, command: Command, wait: EventWait, row: WaitRow) -> None:
    """Take the channel's next message, or leave the run to wait on. Tries until the database has answered."""
    pause = _FIRST_PAUSE
    while not run.closed:
        error = await _try(run, command, wait, row)
        if error is None:
            return
        log.debug("message_not_taken", extra={"instance_id": run.id, "error": str(error)})
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


async def _try(run: Run, command: Command, wait: EventWait, row: WaitRow) -> Exception | None:
    session = ActivitySession(run.host.store.engine(), expire_on_commit=False)
    try:
        taken = await run.host.store.take_message_in_session(await session.connection(), wait.pattern)
    except asyncio.CancelledError:
        await session.close()
        raise
    except Exception as error:  # noqa: BLE001, as the driver raised it
        await session.close()
        return _refused(run, error)
    if isinstance(taken, int):
        await session.close()
        run.took_nothing(command, row, taken)
        return None
    payload, decoded = encode_event(taken)
    record = run.next_record(command, kinds.EVENT, payload, None, taken.accepted_at)
    turn = Turn(run.id, run.host.owner, run.fence, run.signals, records=[record])
    refusal = await commit_record(run, command, session, turn, decoded)
    if isinstance(refusal, OwnershipLostError):
        run.host.loop.call_soon(run.lose)
        return None
    return None if refusal is None else _refused(run, refusal)


def _refused(run: Run, error: Exception) -> Exception | None:
    """The error, to be tried again; None where that never helps, and the instance is given up."""
    if run.host.store.is_transient(error):
        return error
    run.host.loop.call_soon(run.doom, error)
    return None
