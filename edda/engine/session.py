"""The user's session inside an activity or a transaction block, and the commit that carries our records with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncSession

from edda.errors import OwnershipLostError, StorageUnavailableError, TransactionError
from edda.storage.rows import Applied

if TYPE_CHECKING:
    from edda.engine.commands import Command
    from edda.engine.run import Run
    from edda.storage.rows import Turn

log = logging.getLogger("edda.engine")


class ActivitySession(AsyncSession):
    """A session that Edda commits, together with the history."""

    async def commit(self) -> None:
        """Refused: see the message."""
        msg = (
            "ctx.session is committed by Edda when the activity (or the transaction block) ends, together with its "
            "history. Nothing was committed now; use 'await ctx.session.flush()' to see the database's answer earlier."
        )
        raise TransactionError(msg)

    async def finish(self) -> None:
        """The real commit."""
        await super().commit()


async def commit_with(run: Run, session: ActivitySession, turn: Turn) -> Exception | None:
    """Commit the session with the turn as its last statements, and close it.

    None: committed. An error: rolled back, for that reason. A lost answer is looked up, however long it takes.

    Raises:
        OwnershipLostError: another worker owns the instance; everything was rolled back.
    """
    store = run.host.store
    try:
        await session.flush()
        result = await store.apply_in_session(await session.connection(), turn)
        if result.applied is Applied.APPLIED:
            await session.finish()
    except Exception as error:  # noqa: BLE001, whatever the driver said, the database knows what became of it
        await session.close()
        return None if await _is_recorded(run, turn.records[0].seq) else error
    await session.close()
    if result.applied is not Applied.APPLIED:
        raise OwnershipLostError(run.id, run.fence)
    return None


async def commit_record(
    run: Run,
    command: Command,
    session: ActivitySession,
    turn: Turn,
    value: Any,
    committed: Callable[[], None] = lambda: None,
) -> Exception | None:
    """Commit the turn's one record with the session, and give its result to the code; the error, if it was refused.

    Whoever gives up on the command meanwhile does not stop the commit: the record may be on its way, and its place in
    the observed order is taken. ``committed`` is called once it is.
    """
    [record] = turn.records
    run.hold()

    async def commit() -> Exception | None:
        error: Exception | None
        try:
            error = await commit_with(run, session, turn)
        except OwnershipLostError as lost:
            error = lost
        finally:
            run.let_go()
        if error is not None:
            run.skip(record)
            return error
        run.observed_elsewhere(record, command, value)
        committed()
        return None

    return await asyncio.shield(run.host.loop.create_task(commit()))


async def _is_recorded(run: Run, seq: int) -> bool:
    while True:
        try:
            fence = await run.host.store.record_fence(run.id, seq)
        except StorageUnavailableError as error:
            log.warning("waiting_for_database", extra={"error": str(error)})
            await asyncio.sleep(0.2)
            continue
        if fence is not None and fence != run.fence:
            raise OwnershipLostError(run.id, run.fence)
        return fence is not None
