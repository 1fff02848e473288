"""``async with ctx.transaction()`` in a workflow: several activities, one turn.

Inside the block results are seen before they are durable: nothing else of the run is written until it ends, and what
other tasks of the workflow come to meanwhile is written behind it. What was to be written before it opened is committed
before its first activity begins: on SQLite the session keeps every other writer waiting. A crash inside the block
leaves nothing, and it runs again. At its end the records of its activities, its outbox rows and what they wrote through
``ctx.session`` are committed together. When an exception leaves it, what they wrote is rolled back, and their records
are kept with the mark that it was: replay must take the same way to that exception.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from edda.engine.draft import Delivery, Part
from edda.engine.session import ActivitySession, commit_with
from edda.errors import OwnershipLostError
from edda.history import records as kinds
from edda.history.codec import encode_exception
from edda.storage.rows import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import TracebackType

    from edda.engine.commands import Command
    from edda.engine.run import Run
    from edda.storage.rows import OutboxMessage, Record


class Block:
    """One open block. ``past``: it is being replayed, and is committed (or rolled back) already."""

    def __init__(self, run: Run, command: Command, *, past: bool) -> None:
        self._run = run
        self._command = command
        self.past = past
        self._session: ActivitySession | None = None
        self._records: list[Record] = []
        self._outbox: list[OutboxMessage] = []
        self._committed: list[Callable[[], None]] = []
        self.behind: list[Callable[[], None]] = []
        self._ending: asyncio.Task[None] | None = None
        #: Its attempts share a session, which serves one task at a time.
        self.one_at_a_time = asyncio.Lock()

    @property
    def session(self) -> ActivitySession:
        """The session of all activities inside."""
        if self._session is None:
            self._session = ActivitySession(self._run.host.store.engine(), expire_on_commit=False)
        return self._session

    @property
    def in_transaction(self) -> bool:
        """Whether anything was done through the session."""
        return self._session is not None and self._session.in_transaction()

    def observe(
        self, record: Record, outbox: list[OutboxMessage] | None, committed: Callable[[], None] | None
    ) -> None:
        """A result inside the block."""
        self._records.append(record)
        self._outbox.extend(outbox or ())
        if committed is not None:
            self._committed.append(committed)

    def drop(self, bodies: Collection[asyncio.Task[None]]) -> None:
        """The run leaves memory: as a crash would. ``bodies``: activities that are being cancelled."""
        if self._session is not None and self._ending is None:
            self._ending = self._run.host.loop.create_task(self._close_behind(self._session, bodies))

    @staticmethod
    async def _close_behind(session: ActivitySession, bodies: Collection[asyncio.Task[None]]) -> None:
        if bodies:
            await asyncio.wait(bodies)
        await session.close()

    # ------------------------------------------------------------------ the context manager

    async def __aenter__(self) -> None:
        """Open."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        """Commit, or roll back."""
        if kind is not None and issubclass(kind, GeneratorExit):
            return False  # the run is being dropped
        self._run.leave_block(self)
        if not self.past:
            # On the real loop: drivers belong to it.
            self._ending = self._run.host.loop.create_task(self._end(rolled_back=kind is not None))
        await self._command.future
        return False

    async def _end(self, *, rolled_back: bool) -> None:
        run, command, session = self._run, self._command, self._session
        failure: Exception | None = None
        if session is not None and rolled_back:
            await session.close()
        elif session is not None:
            record = run.next_record(command, kinds.BLOCK, b"true", None)
            turn = Turn(
                run.id,
                run.host.owner,
                run.fence,
                run.signals,
                records=[*self._records, record],
                outbox=self._outbox,
            )
            try:
                failure = await commit_with(run, session, turn)
            except OwnershipLostError:
                run.lose()
                return
            if failure is None:
                self._done(turn, record)
                return
            run.skip(record)
            if run.host.store.is_transient(failure):
                run.restart()
                return
        self._write_down(failure, rolled_back=rolled_back)

    def _done(self, turn: Turn, record: Record) -> None:
        run = self._run
        if run.closed:
            return
        run.host.committed(turn)
        for committed in self._committed:
            committed()
        run.close_block(self)
        run.deliver(record, Delivery(self._command, None, None))

    def _write_down(self, failure: Exception | None, *, rolled_back: bool) -> None:
        """Without a transaction of the user's (or after its end): the run's next turn."""
        run = self._run
        if run.closed:
            return
        run.close_block(self, lambda: self._write(failure, rolled_back=rolled_back))

    def _write(self, failure: Exception | None, *, rolled_back: bool) -> None:
        run = self._run
        for record in self._records:
            run.write(Part(record=record, speculative=True))
        if failure is not None:
            run.observe(self._command, kinds.BLOCK_FAILED, encode_exception(failure), None, None, failure)
            return
        kept = not rolled_back

        def committed() -> None:
            for callback in self._committed:
                callback()

        run.observe(
            self._command,
            kinds.BLOCK,
            b"true" if kept else b"false",
            None,
            None,
            outbox=self._outbox if kept else None,
            committed=committed if kept else None,
        )
