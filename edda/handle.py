"""A handle on one instance, wherever it runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from edda.errors import EddaError, InstanceNotFoundError, StorageUnavailableError
from edda.history.codec import decode, decode_exception
from edda.status import iso, status_word
from edda.storage.rows import ENDED, InstanceRow, State

if TYPE_CHECKING:
    from edda.engine.worker import Worker
    from edda.storage.contract import Storage

log = logging.getLogger("edda.app")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0


class InstanceEndedError(EddaError):
    """The instance has no result: it was cancelled, or given up (dead-lettered)."""

    code = "EDDA213"


class WorkflowCancelledError(InstanceEndedError):
    """The instance was cancelled: it has no result."""

    code = "EDDA214"


class Handle:
    """Look at an instance, or wait for its result."""

    def __init__(self, instance_id: str, store: Storage, worker: Worker | None) -> None:
        self.id = instance_id
        self._store = store
        self._worker = worker

    async def status(self) -> str:
        """Its status word (``running``, ``waiting_for_timer``, ``completed``, ...)."""
        return status_word(await self._row())

    async def result(self, timeout: float | None = None) -> Any:
        """Wait for the end: the workflow's result, or its exception raised again.

        Raises TimeoutError after ``timeout`` seconds (the instance goes on), InstanceEndedError when it was given
        up or cancelled.
        """
        async with asyncio.timeout(timeout):
            return outcome_of(await self.chain_ended())

    async def resume(self) -> bool:
        """Let a paused instance go on (with the code as it is now); False if it is not paused."""
        app = await self._store.resume(self.id)
        if app is not None and self._worker is not None:
            self._worker.woken({app})
        return app is not None

    async def cancel(self, *, by: str = "user", wait: float | None = 30.0) -> bool:
        """Ask for its end: its code is stopped, running activities are cancelled, compensations run.

        True: it is cancelled, or will be. False: it had ended already (or is being compensated because it failed).
        Waits for the end for ``wait`` seconds at most, None: as long as it takes, 0: not at all; where no worker has
        the workflow it stays ``cancelling`` until one does. Raises InstanceNotFoundError.
        """
        row = await self._row()
        if row.ended_at is not None:
            return False
        was = status_word(row)
        if was in {"cancelling", "compensating"}:
            return await self._is_cancelled(wait)
        now = await self._store.now()
        detail = to_json({"cancelled_by": by, "cancelled_at": iso(now), "previous_status": was})
        found = await self._store.request_cancel(self.id, detail)
        if found is None or found[1] in ENDED:
            return False
        if self._worker is not None:
            self._worker.cancel_requested(found[0], self.id)
        return await self._is_cancelled(wait)

    async def _is_cancelled(self, wait: float | None) -> bool:
        """Whether it has ended as cancelled; while it has not ended: True."""
        row = await self._row()
        with contextlib.suppress(TimeoutError):
            if wait != 0:
                async with asyncio.timeout(wait):
                    row = await self.ended()
        return row.state is State.CANCELLED or row.ended_at is None

    async def chain_ended(self) -> InstanceRow:
        """Wait until the instance, and every run that follows it by ``ctx.recur()``, has ended; the last one's row."""
        row = await self.ended()
        while row.state is State.RECURRED:
            next_id: str = from_json(row.output or b"{}")["continued_as"]
            row = await Handle(next_id, self._store, self._worker).ended()
        return row

    async def ended(self) -> InstanceRow:
        """Wait until the instance has ended; its row. While the database is away, that is waited for, too."""
        pause = _FIRST_PAUSE
        while True:
            watcher = self._worker.watch(self.id) if self._worker is not None else None
            try:
                row = await self._row_or_none()
                if row is not None and row.ended_at is not None:
                    return row
                if watcher is not None:
                    await asyncio.wait([watcher], timeout=pause)
                else:
                    await asyncio.sleep(pause)
            finally:
                if watcher is not None and self._worker is not None:
                    self._worker.unwatch(self.id, watcher)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _row_or_none(self) -> InstanceRow | None:
        try:
            return await self._row()
        except StorageUnavailableError as error:
            log.warning("result_waits_for_database", extra={"instance_id": self.id, "error": str(error)})
            return None

    async def need_not_failed(self) -> None:
        """Raises InstanceEndedError when it has ended otherwise than completed."""
        row = await self._row()
        if row.ended_at is not None and row.state is not State.COMPLETED:
            msg = f"instance {self.id!r} has ended as {row.state}; nothing was resumed. Start it anew."
            raise InstanceEndedError(msg)

    async def _row(self) -> InstanceRow:
        row = await self._store.get_instance(self.id)
        if row is None:
            msg = f"instance {self.id!r} does not exist (or was removed by retention)"
            raise InstanceNotFoundError(msg)
        return row

    def __repr__(self) -> str:
        """For people."""
        return f"<handle {self.id}>"


def outcome_of(row: InstanceRow) -> Any:
    """The result of an ended instance, or its exception raised."""
    if row.state is State.COMPLETED:
        return decode(row.output or b"null", row.output_type)
    if row.state is State.FAILED and row.error is not None:
        raise decode_exception(row.error)
    if row.state is State.CANCELLED:
        by = from_json(row.output or b"{}").get("cancelled_by")
        msg = f"instance {row.id!r} was cancelled by {by}"
        raise WorkflowCancelledError(msg)
    reason = f": {decode_exception(row.error)}" if row.error else ""
    msg = f"instance {row.id!r} ended as {row.state}{reason}"
    raise InstanceEndedError(msg)
