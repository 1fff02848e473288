"""One try of an activity's body, and the trying again.

The body runs outside any transaction of ours. If it used ``ctx.session``, its history record, outbox rows and fence check
are the last statements of that same transaction; else they go with the run's next turn. A failed attempt that is to be
repeated is made durable as a wait row before the backoff, so that a crash neither forgets the count nor the pause.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncSession

from edda.errors import EddaError, OwnershipLostError, StorageUnavailableError, TransactionError
from edda.history import records as kinds
from edda.history.codec import decode, encode, encode_exception
from edda.retry import RetryExhaustedError, RetryPolicy, TerminalError
from edda.storage.rows import Applied, OutboxMessage, Turn

if TYPE_CHECKING:
    from edda.engine.commands import Command
    from edda.engine.run import Run

log = logging.getLogger("edda.engine")

#: The attempt whose body runs now in this task or thread, if any.
current_attempt: ContextVar[Attempt | None] = ContextVar("edda_current_attempt", default=None)

#: How often a commit that the database refused for others' sake (serialisation) is tried again without counting.
_FREE_TRIES = 10


class ActivitySession(AsyncSession):
    """The session of one attempt: the attempt's end commits it, together with the history record."""

    async def commit(self) -> None:
        """Refused: see the message."""
        msg = (
            "ctx.session is committed by Edda when the activity returns, together with its history record. Nothing was "
            "committed now; use 'await ctx.session.flush()' to see the database's answer earlier."
        )
        raise TransactionError(msg)

    async def finish(self) -> None:
        """The real commit."""
        await super().commit()


class Attempt:
    """What ``ctx`` stands on inside an activity: a session opened on first use, an outbox, callbacks after commit."""

    def __init__(self, run: Run, command: Command) -> None:
        self.run = run
        self.command = command
        self.outbox: list[OutboxMessage] = []
        self.after_commit: list[Callable[[], Awaitable[None]]] = []
        self._session: ActivitySession | None = None

    @property
    def session(self) -> AsyncSession:
        """The user's session; its transaction begins with its first statement."""
        if self._session is None:
            self._session = ActivitySession(self.run.host.store.engine(), expire_on_commit=False)
        return self._session

    @property
    def uses_session(self) -> bool:
        """Whether this attempt's record must be written by the session's own transaction."""
        return self._session is not None

    @property
    def blocks_writers(self) -> bool:
        """Whether an engine call that commits would wait for this attempt for ever (SQLite)."""
        return (
            self._session is not None
            and self._session.in_transaction()
            and self.run.host.store.session_holds_writer
        )

    async def rollback(self) -> None:
        """Whatever the body did through the session is undone."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()
        self.outbox.clear()
        self.after_commit.clear()

    async def commit(self, payload: bytes, content_type: str | None, value: Any) -> bool:
        """Commit the user's transaction with our record in it; False: refused for others' sake, run the body again.

        Raises OwnershipLostError when another worker owns the instance (everything is rolled back).
        """
        run, command, session = self.run, self.command, self._session
        assert session is not None  # noqa: S101, uses_session
        await session.flush()
        record = run.next_record(command, kinds.ACTIVITY, payload, content_type)
        turn = Turn(
            run.id, run.host.owner, run.fence, run.signals, records=[record], outbox=list(self.outbox)
        )
        committed = False
        try:
            result = await run.host.store.apply_in_session(await session.connection(), turn)
            if result.applied is not Applied.APPLIED:
                raise OwnershipLostError(run.id, run.fence)
            await session.finish()
            committed = True
        except OwnershipLostError:
            raise
        except Exception as error:  # noqa: BLE001, whatever the driver said, the database knows what became of it
            await session.close()
            committed = await self._resolve(record.seq, error)
        finally:
            run.observed_elsewhere(record, command, value, None, committed=committed)
            await session.close()
        if committed:
            run.host.committed(turn)
        return committed

    async def _resolve(self, seq: int, error: Exception) -> bool:
        """The commit's outcome is unknown: ask for the record until the database answers."""
        store = self.run.host.store
        while True:
            try:
                fence = await store.record_fence(self.run.id, seq)
            except StorageUnavailableError:
                await asyncio.sleep(0.2)
                continue
            if fence is None:
                log.warning("session_commit_failed", extra={"instance_id": self.run.id, "error": str(error)})
                return False
            if fence == self.run.fence:
                return True
            raise OwnershipLostError(self.run.id, self.run.fence)

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
    while True:
        attempt = Attempt(run, command)
        token = current_attempt.set(attempt)
        try:
            value = await call.invoke(attempt)
            payload, content_type = encode(value, f"result of activity {call.name!r}")
            value = decode(payload, content_type, call.adapter)
            if attempt.uses_session:
                if await attempt.commit(payload, content_type, value):
                    attempt.committed()
                    return
                free_tries += 1
                if free_tries < _FREE_TRIES:
                    continue
                msg = (
                    f"activity {call.name!r}: its transaction was refused {free_tries} times (serialisation)"
                )
                raise StorageUnavailableError(msg)
        except asyncio.CancelledError:
            await attempt.rollback()
            raise
        except OwnershipLostError:
            await attempt.rollback()
            run.host.loop.call_soon(run.lose)
            return
        except Exception as error:  # noqa: BLE001, user code raises anything
            await attempt.rollback()
            if await _failed(run, command, policy, error):
                continue
            return
        finally:
            current_attempt.reset(token)
        if run.closed:
            return
        run.observe(
            command,
            kinds.ACTIVITY,
            payload,
            content_type,
            value,
            outbox=attempt.outbox,
            after_commit=attempt.committed if attempt.after_commit else None,
        )
        return


async def _failed(run: Run, command: Command, policy: RetryPolicy, error: Exception) -> bool:
    """True: slept, try again now. False: recorded as failed, or parked."""
    if run.closed:
        return False
    number = command.attempt
    delay = policy.calculate_delay(number)
    final = _final_error(command, policy, error, number, delay, run.host.now_us())
    if final is not None:
        run.observe(command, kinds.ACTIVITY_FAILED, encode_exception(final), None, None, final)
        return False
    detail = to_json(
        {"attempt": number, "first_us": command.first_us, "error": f"{type(error).__name__}: {error}"[:2_000]}
    )
    command.attempt = number + 1
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
    if not policy.is_retryable(error):
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
