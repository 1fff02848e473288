"""Saga: what undoes a step, should the workflow fail or be cancelled later on."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from edda.context import WorkflowContext, attempt_of, run_of
from edda.engine.undo import Compensation
from edda.errors import TransactionError
from edda.history.arguments import args_hash

if TYPE_CHECKING:
    from edda.engine.attempt import Attempt
    from edda.retry import RetryPolicy

F = TypeVar("F", bound=Callable[..., Any])

#: Where ``@on_failure`` leaves what undoes the function.
_MARK = "_edda_undone_by"


def compensation(func: F) -> F:
    """Mark a function ``(ctx, ...)`` as a compensation. It says what it is for; any function (or activity) may be one.

    Its body runs like an activity's: with ``ctx.session``, transactional events, and retries by the app's policy (an
    ``@activity`` has its own). It may run more than once (a crash before its commit), so make it repeatable.
    """
    setattr(func, "_is_compensation", True)  # noqa: B010, functions have no attribute of this name to a type checker
    return func


def on_failure(compensation: Callable[..., Any]) -> Callable[[F], F]:
    """Under ``@activity``: once the activity has succeeded, ``compensation`` undoes it, should the workflow fail.

    ::

        @activity
        @on_failure(release_seats)
        async def reserve_seats(ctx, flight, count): ...

    It is called with the activity's arguments, by name, and with what the activity returned: the members of a dict or
    of a Pydantic model take precedence over arguments of the same name. It gets those of them that it has parameters
    for.
    """

    def decorate(func: F) -> F:
        setattr(_function_of(func), _MARK, compensation)
        return func

    return decorate


async def register_compensation(
    ctx: WorkflowContext,
    func: Callable[..., Any],
    *args: Any,
    activity_id: str | None = None,
    **kwargs: Any,
) -> None:
    """Should the workflow fail, or be cancelled, from here on: call ``func(ctx, *args, **kwargs)``.

    Compensations run one after the other, the last registered first, each once and recorded; after a crash the rest
    runs. One that keeps failing is recorded, and the next one runs. ``activity_id`` names it in the history.

    Raises TransactionError inside an activity.
    """
    if attempt_of(ctx) is not None:
        msg = (
            "register_compensation() belongs to the workflow: an activity may fail and run again. Nothing was "
            "registered; call it in the workflow behind the activity, or put @on_failure under @activity."
        )
        raise TransactionError(msg)
    run_of(ctx).register_compensation(_call(func, args, kwargs, activity_id))


def undoing(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[[Any], Compensation] | None:
    """For a call of an activity's function: from its result, what ``@on_failure`` registers. None: nothing does."""
    undone_by = getattr(func, _MARK, None)
    if undone_by is None:
        return None

    def register(result: Any) -> Compensation:
        given = inspect.signature(func).bind(None, *args, **kwargs).arguments
        named = dict(list(given.items())[1:])
        for parameter in inspect.signature(func).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                named |= named.pop(parameter.name, {})
        return _call(undone_by, (), _taken(undone_by, named | _members(result)), None)

    return register


def _members(result: Any) -> dict[str, Any]:
    if isinstance(result, dict):
        return {name: value for name, value in result.items() if isinstance(name, str)}
    return dict(result) if isinstance(result, BaseModel) else {}


def _taken(func: Callable[..., Any], named: dict[str, Any]) -> dict[str, Any]:
    parameters = list(inspect.signature(_function_of(func)).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return named
    names = {p.name for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}}
    return {name: value for name, value in named.items() if name in names}


def _function_of(func: Callable[..., Any]) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(func, "func", func)
    return found


def _call(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], activity_id: str | None
) -> Compensation:
    body = _function_of(func)
    name = activity_id or getattr(func, "name", None) or body.__name__
    policy: RetryPolicy | None = getattr(func, "retry_policy", None)

    def invoke(attempt: Attempt) -> Awaitable[Any]:
        ctx = WorkflowContext(attempt.run, attempt)
        if inspect.iscoroutinefunction(body):
            result: Awaitable[Any] = body(ctx, *args, **kwargs)
            return result
        return attempt.run.host.run_in_thread(functools.partial(body, ctx, *args, **kwargs))

    return Compensation(name, invoke, policy, args_hash(args, kwargs, f"arguments of compensation {name!r}"))
