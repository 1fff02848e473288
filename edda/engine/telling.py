"""Calling the app's hooks: one after the other, beside the work, and none of them able to harm it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from edda.storage.rows import State

if TYPE_CHECKING:
    from edda.engine.commands import Command
    from edda.engine.host import Released
    from edda.engine.run import Run

log = logging.getLogger("edda.engine")


#: Seconds that an activity's start waits for the hooks.
_PATIENCE = 5.0


class Telling:
    """The calls of one instance, or of the app itself."""

    def __init__(
        self, hooks: object, loop: asyncio.AbstractEventLoop, tasks: set[asyncio.Task[None]]
    ) -> None:
        self._hooks = hooks
        self._loop = loop
        self._tasks = tasks
        self._calls: deque[tuple[Callable[..., Awaitable[None]], tuple[Any, ...]]] = deque()
        self._task: asyncio.Task[None] | None = None

    def tell(self, name: str, *arguments: Any) -> None:
        """Call the hook when those before it are done; nothing where the app has none of this name."""
        hook = getattr(self._hooks, name, None)
        if hook is None:
            return
        self._calls.append((hook, arguments))
        if self._task is None:
            self._task = self._loop.create_task(self._call_all())
            self._tasks.add(self._task)
            self._task.add_done_callback(self._tasks.discard)

    async def told(self) -> None:
        """Wait until all calls so far are done; but not for ever, whatever a hook does."""
        if self._task is not None:
            _, pending = await asyncio.wait([self._task], timeout=_PATIENCE)
            if pending:
                log.warning("hook_takes_long", extra={"seconds": _PATIENCE})

    async def _call_all(self) -> None:
        try:
            while self._calls:
                hook, arguments = self._calls.popleft()
                try:
                    await hook(*arguments)
                except Exception:
                    log.exception("hook_failed", extra={"hook": getattr(hook, "__name__", repr(hook))})
        finally:
            self._task = None


def ids_of(command: Command) -> tuple[str, str]:
    """An activity's id (the caller's own, or one made of its number) and its name."""
    function = command.call.function if command.call is not None else ""
    name = function or command.name
    return (command.name if command.name != function else f"{name}:{command.seq}"), name


def tell_of_activity(
    run: Run, telling: Telling, command: Command, value: Any, error: BaseException | None
) -> None:
    """Its result is about to be given to the code."""
    if command.call is None:
        return
    activity_id, name = ids_of(command)
    if run.replaying:
        telling.tell("on_activity_start", run.id, activity_id, name, True)
    if error is None:
        telling.tell("on_activity_complete", run.id, activity_id, name, value, run.replaying)
    else:
        telling.tell("on_activity_failed", run.id, activity_id, name, error)


def tell_of_end(run: Run, telling: Telling, how: Released, root: asyncio.Task[Any] | None) -> None:
    """It has ended, and that is stored."""
    name = run.definition.name
    if how.state is State.COMPLETED and root is not None:
        telling.tell("on_workflow_complete", run.id, name, root.result())
    elif how.state is State.CANCELLED:
        telling.tell("on_workflow_cancelled", run.id, name)
    elif how.error is not None:
        telling.tell("on_workflow_failed", run.id, name, how.error)
