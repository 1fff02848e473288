"""Waiting in workflows: events and timers. A parked wait costs a row, no memory and no task."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel

from edda.context import WorkflowContext, attempt_of, run_of
from edda.engine.commands import EventWait, TimerWait
from edda.engine.run import Run
from edda.errors import EddaError, TransactionError
from edda.inbox.shapes import shape_hash, validate_path, validate_pattern
from edda.received import ReceivedEvent, received


class EventTimeoutError(EddaError, TimeoutError):
    """No fitting event was accepted before the deadline."""

    code = "EDDA310"

    def __init__(self, event_type: str, timeout_seconds: float | None = None) -> None:
        self.event_type, self.timeout_seconds = event_type, timeout_seconds
        super().__init__(f"event {event_type!r} did not arrive within {timeout_seconds} seconds")


async def wait_event(
    ctx: WorkflowContext,
    event_type: str,
    timeout_seconds: float | None = None,
    model: type[BaseModel] | None = None,
    event_id: str | None = None,
    *,
    match: Mapping[str, Any] | None = None,
    lookback: timedelta | None = None,
    since: Literal["start", "wait"] = "start",
) -> ReceivedEvent:
    """Wait for the next event of a type (``"payment.completed"``, or ``"payment.*"``).

    Args:
        ctx: The workflow's context.
        event_type: An exact type, or a prefix with a trailing ``.*``.
        timeout_seconds: Give up after this long, counted from the first reach of the wait. An event accepted before
            the deadline wins, however late the worker looks.
        model: Parse ``data`` into this Pydantic model.
        event_id: Names this wait in the history (default: the type).
        match: Paths and the values they must have, such as ``{"data.order_id": order_id}``. Compared as JSON: 42 is
            not "42".
        lookback: How long before the run's start an event may have been accepted (within the inbox's retention).
        since: ``"start"``: events accepted since the instance was started (with ``match``: since a minute before),
            so that an event that comes before the wait is not lost. ``"wait"``: only events accepted after this
            wait was first reached.

    Each event is received once by an instance, in the order of acceptance.

    Raises:
        EventTimeoutError: nothing came in time.
        TransactionError: called inside an activity.
    """
    run = workflow_run(ctx, "wait_event")
    wait = event_wait(event_type, timeout_seconds, match, lookback, since)
    event = await run.wait_event(wait, event_id or event_type)
    if event is None:
        raise EventTimeoutError(event_type, timeout_seconds)
    return received(event, model)


def event_wait(
    event_type: str,
    timeout_seconds: float | None,
    match: Mapping[str, Any] | None,
    lookback: timedelta | None,
    since: Literal["start", "wait"],
) -> EventWait:
    """What the engine is to wait for. Raises ConfigurationError or ValueError for what cannot be waited for."""
    validate_pattern(event_type)
    values = dict(match or {})
    for path in values:
        validate_path(path)
    if timeout_seconds is not None and timeout_seconds < 0:
        msg = f"wait_event({event_type!r}): timeout_seconds={timeout_seconds} must not be negative"
        raise ValueError(msg)
    return EventWait(
        event_type,
        tuple(sorted(values)),
        shape_hash(event_type, values),
        None if timeout_seconds is None else int(timeout_seconds * 1_000_000),
        None if lookback is None else int(lookback.total_seconds() * 1_000_000),
        since == "wait",
    )


async def sleep(ctx: WorkflowContext, seconds: float, timer_id: str | None = None) -> None:
    """Sleep durably: the instance is parked, and resumed by any worker when the time has come."""
    run = workflow_run(ctx, "sleep")
    if seconds < 0:
        msg = f"sleep: seconds={seconds} must not be negative"
        raise ValueError(msg)
    await run.sleep(TimerWait(delay_us=int(seconds * 1_000_000)), timer_id or "sleep")


async def sleep_until(ctx: WorkflowContext, target_time: datetime, timer_id: str | None = None) -> None:
    """Sleep durably until a time (aware; compared with the database's clock). A time that has passed does not wait."""
    run = workflow_run(ctx, "sleep_until")
    if target_time.tzinfo is None:
        msg = f"sleep_until: {target_time.isoformat()} has no time zone; use for example datetime(..., tzinfo=UTC)"
        raise ValueError(msg)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    deadline = (target_time - epoch) // timedelta(microseconds=1)
    await run.sleep(TimerWait(deadline_us=deadline), timer_id or "sleep_until")


wait_timer = sleep
wait_until = sleep_until


def workflow_run(ctx: WorkflowContext, what: str) -> Run:
    """The run of a workflow's own context. Raises TransactionError for an activity's."""
    if attempt_of(ctx) is not None:
        msg = f"{what} waits, and an activity must not: call it in the workflow {ctx.workflow_name!r} itself"
        raise TransactionError(msg)
    return run_of(ctx)
