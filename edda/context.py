"""``ctx``: what workflows and activities are given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import UUID, uuid4

from edda.engine.outcome import RecurError
from edda.errors import TransactionError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from edda.engine.attempt import Attempt
    from edda.engine.run import Run


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: A change's name is kept in the history.
_LONGEST_CHANGE = 200


class WorkflowContext:
    """One run's context; inside an activity, that attempt's."""

    __slots__ = ("_attempt", "_run")

    def __init__(self, run: Run, attempt: Attempt | None = None) -> None:
        self._run = run
        self._attempt = attempt

    @property
    def instance_id(self) -> str:
        """The instance's id."""
        return self._run.id

    @property
    def workflow_name(self) -> str:
        """The workflow's stored name."""
        return self._run.definition.name

    @property
    def worker_id(self) -> str:
        """The worker process that runs it now; another one after a crash."""
        return self._run.host.owner

    @property
    def is_replaying(self) -> bool:
        """True while the history is being replayed; for logging only."""
        return self._run.replaying

    def now(self) -> datetime:
        """The time, aware and in UTC, by the database's clock; in a workflow the same again in every replay.

        There it stands still while the code runs and moves on with each result that the code is given: to when an
        activity ended or an event was published; to when an event or a timer was handed over, never before its
        acceptance or its deadline. Until the first result it is when the instance was started (or submitted, or its
        event accepted). So it tells when the code came here, to some milliseconds, and is not for measuring; it costs
        no row. Inside an activity it is the time as it is.
        """
        now_us = self._run.clock.now_us if self._attempt is None else self._run.host.now_us()
        return _EPOCH + timedelta(microseconds=now_us)

    def random(self) -> Random:
        """A ``random.Random``; in a workflow it draws the same numbers again in every replay.

        It is one generator per instance, seeded by its id and the time of its start, and costs no row; each call
        gives that same one. Draws count in the order of the code, ``asyncio.gather`` included. A draw that is added to
        code shifts the later ones of instances that are under way: guard it with ``patched``. Not for secrets. Inside
        an activity it is a fresh one, seeded by the system.
        """
        return self._run.chance.random if self._attempt is None else Random()  # noqa: S311, as the docstring says

    def uuid4(self) -> UUID:
        """A random UUID; in a workflow the same again in every replay, as an idempotency key should be.

        It follows from the instance's id, the time of its start and how many were drawn before, and costs no row. Not
        for secrets. Inside an activity it is ``uuid.uuid4()``.
        """
        return self._run.chance.uuid4() if self._attempt is None else uuid4()

    def patched(self, change: str) -> bool:
        """Whether to go the new way, where the code of a workflow is changed while instances of it are alive.

        ``if ctx.patched("ask-twice"): <new code> else: <old code>``. An instance that comes here for the first time
        goes the new way, and a marker in its history keeps it there. One that has been here on the old code, which is
        known by a result or a wait of a later call, goes the old way. The first answer for a name counts for the whole
        run. Use a new name (1 to 200 characters) for each change.

        The marker goes with the run's next turn. An activity that follows at once begins when that is committed; a
        wait, a published event or the end share the turn. A crash before it leaves nothing of the new way, and the
        question is asked again. Once no instance from before the change is alive, delete the old code and the call:
        markers that are left do no harm.

        Raises ValueError for a name that cannot be kept, TransactionError inside an activity.
        """
        if self._attempt is not None:
            msg = (
                f"ctx.patched({change!r}) chooses a way of the workflow {self.workflow_name!r} and belongs into its "
                "own code; an activity is recorded by its result, and may simply be changed. Nothing was written."
            )
            raise TransactionError(msg)
        if not 1 <= len(change) <= _LONGEST_CHANGE or "\0" in change:
            msg = (
                f"ctx.patched({change!r}): the name of a change has 1 to {_LONGEST_CHANGE} characters, for example "
                "'ask-twice'"
            )
            raise ValueError(msg)
        return self._run.patched(change)

    @property
    def session(self) -> AsyncSession:
        """Inside an activity: a SQLAlchemy session whose commit is the activity's own.

        Opened on first use; committed by Edda when the activity returns, in one transaction with its history record and
        its outbox events; rolled back when it raises. Nothing of Edda is locked while your code runs.

        Raises TransactionError outside an activity.
        """
        return self._need_attempt("ctx.session").session

    @property
    def hooks(self) -> Any:
        """The app's hooks; None where it has none."""
        return self._run.host.hooks

    @property
    def cancelled(self) -> bool:
        """Inside an activity: whether its workflow is being cancelled, or nobody waits for its result any more.

        An async activity is cancelled by itself (``asyncio.CancelledError`` at its next await). One in a thread cannot
        be, and one that something undoes is let finish: look at this between two pieces of work, and stop.
        """
        return self._attempt is not None and (
            self._attempt.cancelled or self._run.closed or self._run.cancelling
        )

    async def recur(self, **kwargs: Any) -> NoReturn:
        """End this run and go on as a new one with these arguments, with an empty history.

        The new run has an id of its own; what the chain of runs has received counts as received, and what is addressed
        to one of them reaches the one that lives. Compensations registered so far are dropped: nothing undoes what an
        earlier run did. The ended run's status is ``recurred``.

        Raises TypeError for arguments that the workflow does not take, TransactionError inside an activity or a
        transaction.
        """
        if self._attempt is not None:
            msg = f"ctx.recur() ends the run of {self.workflow_name!r}: call it in the workflow, not in an activity"
            raise TransactionError(msg)
        encode = self._run.definition.encode
        if encode is None:
            msg = f"ctx.recur(): {self.workflow_name!r} is a handler of events, and has no arguments to go on with"
            raise TransactionError(msg)
        self._run.need_no_block("ctx.recur()")
        raise RecurError(encode(kwargs))

    def in_transaction(self) -> bool:
        """Whether ``session``, ``register_post_commit`` and transactional events are available here."""
        return self._attempt is not None

    def transaction(self) -> AbstractAsyncContextManager[None]:
        """``async with ctx.transaction():`` around activities of a workflow makes them one turn.

        What they write through ``ctx.session``, their results and their events are committed together at the end. When
        an exception leaves the block, what they wrote and published is rolled back. A crash inside leaves nothing, and
        the block runs again. Nothing may wait inside (TransactionError). An activity is one transaction anyway: there
        this adds nothing.
        """
        return self._run.transaction() if self._attempt is None else nullcontext()

    def register_post_commit(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Call ``callback`` once this attempt is committed; not after a rollback, and not again on replay.

        A crash right after the commit loses the call: for what must happen, publish an event. Raises TransactionError
        outside an activity.
        """
        self._need_attempt("ctx.register_post_commit()").after_commit.append(callback)

    def _need_attempt(self, what: str) -> Attempt:
        if self._attempt is None:
            msg = (
                f"{what} works inside an activity, where it belongs to one attempt's transaction; this is the workflow "
                f"{self.workflow_name!r} itself. Nothing was written. Move the statement into an @activity."
            )
            raise TransactionError(msg)
        return self._attempt


def run_of(ctx: WorkflowContext) -> Run:
    """The run behind a context, for Edda's own modules."""
    return ctx._run  # noqa: SLF001, the one door, so that users' completion shows them only what is theirs


def attempt_of(ctx: WorkflowContext) -> Attempt | None:
    """The attempt behind an activity's context; None in a workflow."""
    return ctx._attempt  # noqa: SLF001, as above
