"""``@activity``: a function whose result is recorded, so that it is not done again on replay."""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from edda.context import WorkflowContext, attempt_of, run_of
from edda.engine.attempt import Attempt
from edda.engine.commands import ActivityCall
from edda.errors import ConfigurationError, TransactionError
from edda.history.arguments import args_hash, hints_of
from edda.history.codec import adapter_for
from edda.retry import RetryPolicy
from edda.saga import undoing

P = ParamSpec("P")
R = TypeVar("R")


class Activity(Generic[P, R]):
    """A decorated activity.

    ``await it(ctx, ...)`` in a workflow gives the recorded result, or runs it and records; in an activity it just runs.
    """

    _is_activity = True

    def __init__(
        self,
        func: Callable[..., Any],
        retry_policy: RetryPolicy | None,
        timeout_seconds: float | None = None,
    ) -> None:
        parameters = list(inspect.signature(func).parameters.values())
        if not parameters:
            name = func.__name__
            msg = f"activity {name!r} must take the context as its first parameter: def {name}(ctx, ...)"
            raise TypeError(msg)
        functools.update_wrapper(self, func)
        self.func = func
        self.name = func.__name__
        if timeout_seconds is not None and timeout_seconds <= 0:
            msg = f"activity {func.__name__!r}: timeout_seconds={timeout_seconds} must be above 0"
            raise ConfigurationError(msg)
        self.retry_policy = retry_policy
        self.timeout_seconds = timeout_seconds
        self._is_async = inspect.iscoroutinefunction(func)
        self._adapter = adapter_for(hints_of(func).get("return", Any))

    async def __call__(self, ctx: WorkflowContext, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the activity, or give its recorded result.

        ``activity_id=`` names the call in the history (default: the function's name). Raises what the activity raised,
        once its retry policy is spent: RetryExhaustedError with the last error as its cause, or TerminalError as it is.
        """
        activity_id = kwargs.pop("activity_id", None)
        given: object = ctx
        if not isinstance(given, WorkflowContext):
            msg = f"activity {self.name!r}: the first argument must be the workflow's ctx, not {type(given).__name__}"
            raise TypeError(msg)
        attempt = attempt_of(ctx)
        if attempt is not None:
            return await self._body(attempt, ctx, args, kwargs)  # type: ignore[no-any-return]

        def invoke(attempt: Attempt) -> Awaitable[Any]:
            return self._body(attempt, WorkflowContext(attempt.run, attempt), args, kwargs)

        name = self.name if activity_id is None else str(activity_id)
        call = ActivityCall(
            name,
            invoke,
            self.retry_policy,
            self._adapter,
            undoing(self.func, args, kwargs),
            timeout=self.timeout_seconds,
            function=self.name,
        )
        digest = args_hash(args, kwargs, f"arguments of activity {self.name!r}")
        return await run_of(ctx).activity(call, digest)  # type: ignore[no-any-return]

    def _body(self, attempt: Attempt, ctx: WorkflowContext, args: Any, kwargs: Any) -> Awaitable[Any]:
        if self._is_async:
            body: Awaitable[Any] = self.func(ctx, *args, **kwargs)
            return body
        context = contextvars.copy_context()
        return attempt.run.host.run_in_thread(functools.partial(context.run, self.func, ctx, *args, **kwargs))

    def __repr__(self) -> str:
        """For people."""
        return f"<activity {self.name}>"


class ActivityDecorator(Protocol):
    """``@activity(...)`` with options decorates as ``@activity`` does."""

    @overload
    def __call__(
        self, func: Callable[Concatenate[WorkflowContext, P], Awaitable[R]], /
    ) -> Activity[P, R]: ...
    @overload
    def __call__(self, func: Callable[Concatenate[WorkflowContext, P], R], /) -> Activity[P, R]: ...


@overload
def activity(
    func: Callable[Concatenate[WorkflowContext, P], Awaitable[R]],
    *,
    retry_policy: RetryPolicy | None = None,
    timeout_seconds: float | None = None,
) -> Activity[P, R]: ...
@overload
def activity(
    func: Callable[Concatenate[WorkflowContext, P], R],
    *,
    retry_policy: RetryPolicy | None = None,
    timeout_seconds: float | None = None,
) -> Activity[P, R]: ...
@overload
def activity(
    func: None = None, *, retry_policy: RetryPolicy | None = None, timeout_seconds: float | None = None
) -> ActivityDecorator: ...
def activity(
    func: Callable[..., Any] | None = None,
    *,
    retry_policy: RetryPolicy | None = None,
    timeout_seconds: float | None = None,
) -> Any:
    """Make a function (async, or sync: it then runs in a thread) an activity.

    Its body may run more than once (a crash before its commit, a retry); its result counts once. ``retry_policy``:
    default the app's. ``timeout_seconds``: how long one attempt may take; then it is cancelled (a thread is told by
    ``ctx.cancelled``), and has failed with ActivityTimeoutError.
    """
    if func is None:
        return functools.partial(activity, retry_policy=retry_policy, timeout_seconds=timeout_seconds)
    return Activity(func, retry_policy, timeout_seconds)


def refuse_while_writing(attempt: Attempt | None, what: str) -> None:
    """On SQLite an open ``ctx.session`` holds the only writer: what must commit now would wait for itself."""
    if attempt is not None and attempt.blocks_writers:
        msg = (
            f"{what} must commit now, but this activity's ctx.session holds SQLite's only writer: it would wait for "
            "itself. Nothing was written by this call. Do it in another activity (or before the session's first "
            "statement)."
        )
        raise TransactionError(msg)
