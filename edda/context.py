"""``ctx``: what workflows and activities are given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING

from edda.errors import TransactionError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from edda.engine.attempt import Attempt
    from edda.engine.run import Run


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

    @property
    def session(self) -> AsyncSession:
        """Inside an activity: a SQLAlchemy session whose commit is the activity's own.

        Opened on first use; committed by Edda when the activity returns, in one transaction with its history record and
        its outbox events; rolled back when it raises. Nothing of Edda is locked while your code runs.

        Raises TransactionError outside an activity.
        """
        return self._need_attempt("ctx.session").session

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
