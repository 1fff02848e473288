"""One try of an activity's body, and the trying again.

The body runs outside any transaction of ours. If it used ``ctx.session``, its history record, outbox rows and fence
check are the last statements of that same transaction; else they go with the run's next turn. A failed attempt that
is to be repeated is made durable as a wait row before the backoff, so that a crash neither forgets the count nor
the pause.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

from edda.engine.session import ActivitySession, commit_record
from edda.engine.telling import ids_of
from edda.errors import EddaError, OwnershipLostError
from edda.history import records as kinds
from edda.history.codec import decode, encode, encode_exception
from edda.retry import ActivityTimeoutError, RetryExhaustedError, RetryPolicy, TerminalError
from edda.storage.rows import OutboxMessage, Turn

if TYPE_CHECKING:
    from edda.engine.commands import ActivityCall, Command
    from edda.engine.run import Run

log = logging.getLogger("edda.engine")

#: The attempt whose body runs now in this task or thread, if any.
current_attempt: ContextVar[Attempt | None] = ContextVar("edda_current_attempt", default=None)

#: How often an attempt whose transaction the database refused for others' sake is run again without counting.
_FREE_TRIES = 10


class Attempt:
    """What ``ctx`` stands on inside an activity: a session opened on first use, an outbox, callbacks after commit."""

    def __init__(self, run: Run, command: Command) -> None:
        self.run = run
        self.command = command
        self.outbox: list[OutboxMessage] = []
        self.after_commit: list[Callable[[], Awaitable[None]]] = []
        self.cancelled = False
        self._committing = False
        self._has_turn = False
        self._session: ActivitySession | None = None
        self._savepoint: AsyncSessionTransaction | None = None

    async def begin(self) -> None:
        """In a block that has written already, a failing attempt must not take the others' writes with it."""
        block = self.command.block
        if block is not None:
            await block.one_at_a_time.acquire()
            self._has_turn = True
            if block.in_transaction:
                self._savepoint = await block.session.begin_nested()

    def end(self) -> None:
        """The next attempt of the block may begin."""
        if self._has_turn and self.command.block is not None:
            self._has_turn = False
            self.command.block.one_at_a_time.release()

    @property
    def session(self) -> AsyncSession:
        """The user's session; its transaction begins with its first statement."""
        if self.command.block is not None:
            return self.command.block.session
        if self._session is None:
            self._session = ActivitySession(self.run.host.store.engine(), expire_on_commit=False)
        return self._session

    @property
    def uses_session(self) -> bool:
        """Whether this attempt's record must be written by a session's own transaction."""
        return self._session is not None

    @property
    def blocks_writers(self) -> bool:
        """Whether an engine call that commits would wait for this attempt for ever (SQLite)."""
        block = self.command.block
        begun = (
            block.in_transaction
            if block is not None
            else self._session is not None and self._session.in_transaction()
        )
        return begun and self.run.host.store.session_holds_writer

    async def rollback(self) -> None:
        """Whatever the body did through the session is undone."""
        if self._committing:
            pass  # the commit goes on, and closes the session
        elif self._session is not None:
            session, self._session = self._session, None
            await session.close()
        elif self.run.closed:
            pass  # the block is being dropped as a whole
        elif self._savepoint is not None:
            await self._savepoint.rollback()
        elif self.command.block is not None and self.command.block.in_transaction:
            await self.command.block.session.rollback()
        self.outbox.clear()
        self.after_commit.clear()

    async def succeed(self, payload: bytes, content_type: str | None, value: Any) -> None:
        """Write the result down: in the session's own commit, in the block, or with the run's next turn.

        Raises OwnershipLostError, or what the database said to the commit of the user's transaction.
        """
        run, command = self.run, self.command
        if self._savepoint is not None:
            await self._savepoint.commit()
        if self._session is None:
            if not run.closed:
                committed = self.committed if self.after_commit else None
                run.observe(
                    command,
                    _done(command),
                    payload,
                    content_type,
                    value,
                    outbox=self.outbox,
                    committed=committed,
                )
            return
        record = run.next_record(command, _done(command), payload, content_type)
        turn = Turn(
            run.id, run.host.owner, run.fence, run.signals, records=[record], outbox=list(self.outbox)
        )

        def pass_on() -> None:
            run.host.committed(turn)
            self.committed()

        self._committing = True
        error = await commit_record(run, command, self._session, turn, value, pass_on)
        if error is not None:
            raise error

    def committed(self) -> None:
        """Start what was registered for after the commit; a failing callback is logged and harms nobody."""
        for callback in self.after_commit:
            task = self.run.host.loop.create_task(_call(callback))
            _callbacks.add(task)
            task.add_done_callback(_callbacks.discard)


_callbacks: set[asyncio.Task[None]] = set()


async def _call(callback: Callable[[], Awaitable[None]]) -> None:
    try:
        await callback()
    except Exception:
        log.exception("post_commit_callback_failed")


async def run_activity(run: Run, command: Command) -> None:
    """Try the body until it succeeds, its policy is spent, or its backoff is long enough to park on."""
    call = command.call
    assert call is not None  # noqa: S101, only activities come here
    policy = call.policy or run.host.default_policy
    if command.first_us == 0:
        command.first_us = run.host.now_us()
    free_tries = 0
    if run.telling is not None and command.attempt == 1:
        run.telling.tell("on_activity_start", run.id, *ids_of(command), False)
        await run.telling.told()
    while True:
        attempt = Attempt(run, command)
        token = current_attempt.set(attempt)
        command.in_body = True
        try:
            await attempt.begin()
            value = await _within(call, attempt)
            payload, content_type = encode(value, f"result of activity {call.name!r}")
            await attempt.succeed(payload, content_type, decode(payload, content_type, call.adapter))
        except asyncio.CancelledError:
            attempt.cancelled = True  # a thread can only be asked to stop
            await attempt.rollback()
            raise
        except OwnershipLostError:
            await attempt.rollback()
            run.host.loop.call_soon(run.lose)
            return
        except Exception as error:  # noqa: BLE001, user code raises anything
            used_session = attempt.uses_session
            await attempt.rollback()
            attempt.end()
            command.in_body = False
            if used_session and free_tries < _FREE_TRIES and run.host.store.is_transient(error):
                free_tries += 1
                await asyncio.sleep(random.random() * 0.01 * 2 ** min(free_tries, 7))  # noqa: S311, jitter
                continue
            if not await _failed(run, command, policy, error):
                return
        else:
            return
        finally:
            attempt.end()
            current_attempt.reset(token)


async def _within(call: ActivityCall, attempt: Attempt) -> Any:
    """The body's result. Raises ActivityTimeoutError when it takes longer than it may."""
    if call.timeout is None:
        return await call.invoke(attempt)
    limit = asyncio.timeout(call.timeout)
    try:
        async with limit:
            return await call.invoke(attempt)
    except TimeoutError:
        if not limit.expired():
            raise  # the body's own
        attempt.cancelled = True  # a thread goes on, and may look at it
        raise ActivityTimeoutError(call.function or call.name, call.timeout) from None


def _done(command: Command) -> str:
    """The kind of the record that it is done."""
    undoes = command.call is not None and command.call.undoes
    return kinds.COMPENSATION if undoes else kinds.ACTIVITY


async def _failed(run: Run, command: Command, policy: RetryPolicy, error: Exception) -> bool:
    """True: slept, try again now. False: recorded as failed, or parked."""
    if run.closed:
        return False
    number = command.attempt
    delay = policy.calculate_delay(number)
    final = _final_error(command, policy, error, number, delay, run.host.now_us())
    if final is not None:
        run.observe(command, kinds.FAILED_OF[_done(command)], encode_exception(final), None, None, final)
        return False
    if run.telling is not None:
        run.telling.tell("on_activity_retry", run.id, *ids_of(command), error, number, delay)
    detail = to_json(
        {"attempt": number, "first_us": command.first_us, "error": f"{type(error).__name__}: {error}"[:2_000]}
    )
    command.attempt = number + 1
    if command.block is not None:
        await asyncio.sleep(
            delay
        )  # nothing is written before the block's end, and the block holds no lock of ours
        return not run.closed
    if delay > run.host.retry_park_after:
        run.backoff(command, delay, detail, None)
        return False
    stored = asyncio.Event()
    run.backoff(command, delay, detail, stored.set)
    await asyncio.gather(stored.wait(), asyncio.sleep(delay))
    return True


def _final_error(
    command: Command, policy: RetryPolicy, error: Exception, number: int, delay: float, now_us: int
) -> Exception | None:
    """The error that the workflow gets, or None to try again."""
    if isinstance(error, TerminalError):
        return error
    reason = ""
    if command.given_up:
        reason = "its workflow is being cancelled"
    elif not policy.is_retryable(error):
        reason = "its error is not retryable"
    elif policy.max_attempts is not None and number >= policy.max_attempts:
        reason = "its attempts are spent"
    elif policy.max_duration is not None:
        spent = (now_us - command.first_us) / 1_000_000 + delay
        if spent > policy.max_duration:
            reason = f"its {policy.max_duration:g} s are spent"
    if not reason:
        return None
    message = str(error) if not isinstance(error, EddaError) else Exception.__str__(error)
    exhausted = RetryExhaustedError(
        f"Activity {command.name} failed after {number} attempts: {type(error).__name__}: {message} ({reason})"
    )
    exhausted.__cause__ = error
    return exhausted
