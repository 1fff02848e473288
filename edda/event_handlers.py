"""``@app.on_event``: a handler is a hidden workflow of one activity, started by a trigger, so that it is durable."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from edda.activity import Activity
from edda.attributes import shown
from edda.cloudevent import CloudEvent
from edda.context import WorkflowContext, run_of
from edda.history.event_input import event_of_input
from edda.received import received
from edda.workflow import Workflow, declared

_LONGEST_NAME = 255


@dataclass(frozen=True, slots=True)
class EventHandler:
    """A registered handler."""

    event_type: str
    workflow: Workflow[Any, Any]


def handler_workflow(event_type: str, handler: Callable[[Any], Coroutine[Any, Any, Any]]) -> EventHandler:
    """The hidden workflow of one handler. Its stored name is made of the type and the handler's own.

    Raises ConfigurationError for a type that is no pattern, TypeError for a handler that is not async.
    """
    if not inspect.iscoroutinefunction(handler):
        msg = (
            f"on_event({event_type!r}): the handler must be 'async def handler(event)', not {shown(handler)}"
        )
        raise TypeError(msg)

    async def call_handler(ctx: WorkflowContext, event: CloudEvent) -> None:
        del ctx
        await handler(received(event))

    call_handler.__name__ = handler.__name__
    call = Activity[Any, Any](call_handler, None)

    async def on_event(ctx: WorkflowContext) -> None:
        await call(ctx, event_of_input(from_json(run_of(ctx).input)))

    on_event.__qualname__ = f"on_event.{event_type}.{handler.__module__}.{handler.__qualname__}"
    workflow = Workflow[Any, Any](
        on_event,
        name=_stored_name(event_type, handler),
        event_handler=False,
        lock_timeout_seconds=None,
        on=event_type,
        key=None,
        version=None,
    )
    del declared[on_event.__module__, on_event.__qualname__]  # it belongs to its app alone
    workflow.definition = type(workflow.definition)(
        workflow.name, lambda run: on_event(WorkflowContext(run)), None
    )
    return EventHandler(event_type, workflow)


def _stored_name(event_type: str, handler: Callable[..., Any]) -> str:
    """Readable, and of at most 255 bytes: a name is an index key."""
    name = f"on_event:{event_type}:{handler.__module__}.{handler.__qualname__}"
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    return f"on_event:{digest}:{handler.__qualname__[-100:].encode('ascii', 'replace').decode()}"
