"""Taking a message of a competing channel: the position moves, and the record is written, in one transaction."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from edda.engine.observed import encode_event
from edda.engine.session import ActivitySession, commit_with
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
        if not run.host.store.is_transient(error):
            run.host.loop.call_soon(run.doom, error)
            return None
        return error
    if isinstance(taken, int):
        await session.close()
        run.took_nothing(command, row, taken)
        return None
    payload, decoded = encode_event(taken)
    record = run.next_record(command, kinds.EVENT, payload, None, taken.accepted_at)
    turn = Turn(run.id, run.host.owner, run.fence, run.signals, records=[record])
    run.hold()
    # Not cut off by whoever gives up on the message: its place in the observed order is taken.
    return await asyncio.shield(run.host.loop.create_task(_commit(run, command, session, turn, decoded)))


async def _commit(
    run: Run, command: Command, session: ActivitySession, turn: Turn, message: object
) -> Exception | None:
    [record] = turn.records
    try:
        error = await commit_with(run, session, turn)
    except OwnershipLostError:
        run.skip(record)
        run.host.loop.call_soon(run.lose)
        return None
    finally:
        run.let_go()
    if error is None:
        run.observed_elsewhere(record, command, message)
        return None
    run.skip(record)
    if not run.host.store.is_transient(error):
        run.host.loop.call_soon(run.doom, error)
        return None
    return error
