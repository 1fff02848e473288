"""``wait_any``: several waits, one winner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from pydantic import BaseModel

from edda.channels import message_of_event, message_wait
from edda.context import WorkflowContext
from edda.engine.commands import TimerWait
from edda.engine.run import Run
from edda.received import received
from edda.waits import event_wait, workflow_run


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the waits: made by ``event()``, ``timer()`` or ``channel()``."""

    kind: Literal["event", "timer", "message"]
    begin: Callable[[Run], asyncio.Future[Any]]
    value: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Winner:
    """What came first. ``index``: its place among the candidates.

    ``value``: the ReceivedEvent, the ChannelMessage, or None for a timer.
    """

    index: int
    kind: Literal["event", "timer", "message"]
    value: Any


def event(
    event_type: str,
    *,
    match: Mapping[str, Any] | None = None,
    model: type[BaseModel] | None = None,
    lookback: timedelta | None = None,
    since: Literal["start", "wait"] = "start",
) -> Candidate:
    """The next event that fits, as ``wait_event`` finds it."""
    wait = event_wait(event_type, None, match, lookback, since)
    return Candidate(
        "event", lambda run: run.wait_event(wait, event_type), lambda found: received(found, model)
    )


def timer(seconds: float = 0.0, *, minutes: float = 0.0, hours: float = 0.0, days: float = 0.0) -> Candidate:
    """The end of this time, counted from the first reach of the ``wait_any``."""
    delay = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    if delay < timedelta():
        msg = f"timer: {delay} must not be negative"
        raise ValueError(msg)
    wait = TimerWait(delay_us=delay // timedelta(microseconds=1))
    return Candidate("timer", lambda run: run.sleep(wait, "timer"), lambda _: None)


def channel(name: str) -> Candidate:
    """The next message on a channel that the run has subscribed to, as ``receive`` finds it."""

    def begin(run: Run) -> asyncio.Future[Any]:
        return run.wait_event(message_wait(run, name, None), f"receive:{name}")

    return Candidate("message", begin, lambda found: message_of_event(found, name))


async def wait_any(ctx: WorkflowContext, *candidates: Candidate) -> Winner:
    """Wait for the first of these; the others are given up, and what comes for them later is received by later waits.

    ::

        first = await wait_any(ctx, event("payment.*", match={"data.order": order}), timer(hours=1))
        if first.kind == "timer":
            ...

    Only the winner's event (or message) is received. Which one wins is recorded, and replay gives the same.
    Raises ValueError without candidates, TransactionError inside an activity or a transaction, NotSubscribedError.
    """
    run = workflow_run(ctx, "wait_any")
    if not candidates:
        msg = "wait_any() needs something to wait for: event(...), timer(...) or channel(...)"
        raise ValueError(msg)
    futures = [candidate.begin(run) for candidate in candidates]
    try:
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        # Results come one at a time, so that exactly one is there; of several, the first named.
        index = next(index for index, future in enumerate(futures) if future.done())
        found = futures[index].result()
    finally:
        for future in futures:
            future.cancel()
    return Winner(index, candidates[index].kind, candidates[index].value(found))
