"""``@app.on_event``: a handler is a hidden workflow of one activity, started by a trigger, so that it is durable."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from edda.activity import Activity
from edda.cloudevent import CloudEvent
from edda.context import WorkflowContext
from edda.history.event_input import event_of_input
from edda.received import received
from edda.workflow import Workflow, declared


@dataclass(frozen=True, slots=True)
class EventHandler:
    """A registered handler."""

    event_type: str
    workflow: Workflow[Any, Any]


def handler_workflow(event_type: str, handler: Callable[[Any], Coroutine[Any, Any, Any]]) -> EventHandler:
    """The hidden workflow of one handler. Its stored name is made of the type and the handler's name."""

    async def call_handler(ctx: WorkflowContext, event: CloudEvent) -> None:
        await handler(received(event))

    call_handler.__name__ = handler.__name__
    call = Activity[Any, Any](call_handler, None)

    async def on_event(ctx: WorkflowContext) -> None:
        event = event_of_input(from_json(ctx._run.input))
        await call(ctx, event)

    on_event.__qualname__ = f"on_event.{event_type}.{handler.__module__}.{handler.__qualname__}"
    workflow = Workflow[Any, Any](
        on_event,
        name=f"on_event:{event_type}:{handler.__qualname__}",
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
