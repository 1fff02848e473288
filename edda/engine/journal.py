"""Group commit: the turns of all runs of a process share flushes.

While one flush is in flight new turns gather; the next takes them all. No timer: an idle journal writes at once.
A turn handed over cannot be withdrawn. After an unknown commit the same flush is sent again (the store tells an
applied turn from a lost one); a value that the database refuses is found by halving, and only its turn hears of it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from edda.errors import StorageDataError, StorageUnavailableError
from edda.storage.contract import Storage
from edda.storage.rows import Turn, TurnResult

log = logging.getLogger("edda.engine")

#: Bounds of one flush.
MAX_TURNS = 500
MAX_BYTES = 8 * 1024 * 1024

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 5.0

Outcome = TurnResult | StorageDataError


class Writer(Protocol):
    """Who hands turns to the journal: a run. Its methods are called from the loop, never from within a task."""

    def take_turn(self) -> Turn | None:
        """The merged turn as it stands now; None if there is nothing to write any more."""
        ...

    def flushed(self, turn: Turn, outcome: Outcome, now_us: int) -> None:
        """The turn's commit, or why there is none."""
        ...


class Journal:
    """One per app. ``submit`` says that a writer has something; the flush asks it for the turn."""

    def __init__(self, store: Storage) -> None:
        self._store = store
        # Of the process: a turn may be handed over by a workflow's code, whose own loop ends with the workflow.
        self._loop = asyncio.get_running_loop()
        self._dirty: dict[Writer, None] = {}
        self._task: asyncio.Task[tuple[list[Outcome], int]] | None = None
        self._scheduled = False
        self._taken: list[tuple[Writer, Turn]] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self.flushes = 0

    def submit(self, writer: Writer) -> None:
        """The writer's turn goes with the next flush."""
        self._dirty[writer] = None
        if self._task is None and not self._scheduled:
            self._scheduled = True
            self._idle.clear()
            # One turn of the loop later: what becomes ready in the same tick shares the flush.
            self._loop.call_soon(self._flush)

    async def drained(self) -> None:
        """Wait until nothing is in flight and nothing waits."""
        await self._idle.wait()

    def _flush(self) -> None:
        self._scheduled = False
        taken: list[tuple[Writer, Turn]] = []
        size = 0
        while self._dirty and len(taken) < MAX_TURNS and size < MAX_BYTES:
            writer = next(iter(self._dirty))
            del self._dirty[writer]
            turn = writer.take_turn()
            if turn is not None:
                taken.append((writer, turn))
                size += _size(turn)
        if not taken:
            self._idle.set()
            return
        self._taken = taken
        self._task = self._loop.create_task(self._write([turn for _, turn in taken]))
        self._task.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[tuple[list[Outcome], int]]) -> None:
        taken, self._taken, self._task = self._taken, [], None
        if task.cancelled():
            self._idle.set()
            return
        outcomes, now_us = task.result()
        for (writer, turn), outcome in zip(taken, outcomes, strict=True):
            try:
                writer.flushed(turn, outcome, now_us)
            except Exception:
                log.exception("run_callback_failed", extra={"instance_id": turn.instance_id})
        if self._dirty and not self._scheduled:
            self._flush()
        elif not self._dirty:
            self._idle.set()

    async def _write(self, turns: list[Turn]) -> tuple[list[Outcome], int]:
        pause = _FIRST_PAUSE
        while True:
            try:
                self.flushes += 1
                result = await self._store.flush(turns)
            except StorageUnavailableError as error:
                log.warning("flush_waits_for_database", extra={"turns": len(turns), "error": str(error)})
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            except StorageDataError as error:
                if len(turns) == 1:
                    return [error], 0
                half = len(turns) // 2
                left, left_now = await self._write(turns[:half])
                right, right_now = await self._write(turns[half:])
                return left + right, max(left_now, right_now)
            except Exception:
                # Not one that a store may raise: sent again, so that nobody is answered falsely or not at all.
                log.exception("flush_failed", extra={"turns": len(turns)})
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                return list(result.results), result.now_us

    def close(self) -> None:
        """Stop writing; a flush in flight is abandoned (its outcome is then unknown, as after a crash)."""
        self._dirty.clear()
        if self._task is not None:
            self._task.cancel()


def _size(turn: Turn) -> int:
    size = 256 + sum(len(record.payload) + 128 for record in turn.records)
    size += sum(len(message.data or b"") + 256 for message in turn.outbox)
    size += sum(len(child.input) + 256 for child in turn.children) + len(turn.output or b"")
    return size + (len(turn.start.input) if turn.start else 0)
