"""``@workflow``: code that survives crashes by deterministic replay, and the ways to start it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from pydantic_core import from_json

from edda.context import WorkflowContext
from edda.engine.attempt import current_attempt
from edda.engine.host import WorkflowDefinition
from edda.engine.outcome import RecurError
from edda.engine.run import Run
from edda.errors import ConfigurationError, NotRunningError
from edda.history.arguments import Parameters
from edda.history.event_input import data_of_input
from edda.inbox.shapes import validate_path, validate_pattern

if TYPE_CHECKING:
    from edda.handle import Handle

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class StartOptions:
    """How an instance is started; see ``Workflow.options``."""

    id: str | None = None
    idempotency_key: str | None = None
    priority: int = 0
    delay: timedelta | None = None


class StartsWorkflows(Protocol):
    """An app, as far as starting goes."""

    service_name: str

    def has_workflow(self, workflow: Workflow[Any, Any]) -> bool: ...
    async def start_workflow(
        self, workflow: Workflow[Any, Any], kwargs: dict[str, Any], options: StartOptions
    ) -> str: ...
    async def start_many(
        self, workflow: Workflow[Any, Any], many: Iterable[Mapping[str, Any]], options: StartOptions
    ) -> list[Handle]:
        """See ``Workflow.start_many``."""
        ...

    async def resume_instance(self, instance_id: str) -> None:
        """See ``Workflow.resume``."""
        ...

    async def submit_workflow(
        self, workflow: Workflow[Any, Any], kwargs: dict[str, Any], options: StartOptions
    ) -> Handle: ...


#: Workflows declared in this process, by where they were defined: a later definition of the same place replaces it.
declared: dict[tuple[str, str], Workflow[Any, Any]] = {}

#: Apps initialised in this process.
running_apps: list[StartsWorkflows] = []


class Workflow(Generic[P, R]):
    """A decorated workflow. Calling it runs the function directly, without durability."""

    def __init__(
        self,
        func: Callable[..., Coroutine[Any, Any, R]],
        *,
        name: str | None,
        event_handler: bool,
        lock_timeout_seconds: int | None,
        on: str | None,
        key: str | None,
        version: str | None,
    ) -> None:
        if not inspect.iscoroutinefunction(func):
            msg = f"workflow {func.__name__!r} must be async: write 'async def {func.__name__}(ctx, ...)'"
            raise TypeError(msg)
        if not list(inspect.signature(func).parameters):
            msg = f"workflow {func.__name__!r} must take the context as its first parameter"
            raise TypeError(msg)
        functools.update_wrapper(self, func)
        self.func = func
        self.place = f"{func.__module__}.{func.__qualname__}"
        self.name = name or func.__name__
        self.event_handler = event_handler
        self.lock_timeout_seconds = lock_timeout_seconds
        self.on = on
        self.key = key
        self.version = version
        self.parameters = Parameters(func)
        self.definition = WorkflowDefinition(self.name, self._entry, version, self.parameters.encode)
        if key is not None and on is None:
            msg = f"workflow {self.name!r}: key={key!r} says which runs are one per event; it needs on='<event type>'"
            raise ConfigurationError(msg)
        if on is not None:
            validate_pattern(on)
        if key is not None:
            validate_path(key)
        declared[func.__module__, func.__qualname__] = self

    async def _entry(self, run: Run) -> Any:
        if run.input.startswith(b'{"$event"'):
            kwargs = self.parameters.from_data(data_of_input(from_json(run.input)))
        else:
            kwargs = self.parameters.decode(run.input)
        return await self.func(WorkflowContext(run), **kwargs)

    def __call__(self, ctx: WorkflowContext, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """The function itself."""
        return self.func(ctx, *args, **kwargs)

    async def start(self, lock_timeout_seconds: int | None = None, **kwargs: Any) -> str:
        """Start an instance and run it here until it ends or parks; its id.

        Returns when the workflow completes or reaches its first wait (event, timer); raises the workflow's
        exception when it fails. ``lock_timeout_seconds`` is accepted for ``edda-framework 0.16``: leases are
        renewed, so that no run outlives one.
        """
        del lock_timeout_seconds
        return await BoundStart(self, StartOptions()).start(**kwargs)

    async def submit(self, **kwargs: Any) -> Handle:
        """Make a start durable and return at once; some worker of the app runs it."""
        return await BoundStart(self, StartOptions()).submit(**kwargs)

    async def start_many(self, many: Iterable[Mapping[str, Any]], *, priority: int = 0) -> list[Handle]:
        """Start an instance for each of these arguments; handles in the same order, once all are durable.

        In transactions of a few hundred, so that a crash in between leaves the first ones started. The workers of the
        app run them. Raises TypeError (nothing started) if the workflow does not take the arguments.
        """
        return await self.app().start_many(self, many, StartOptions(priority=priority))

    async def resume(self, instance_id: str, event: Any = None) -> None:
        """Let a paused instance go on, with the code as it is now.

        As in ``edda-framework 0.16`` an instance that waits, runs or has completed is left alone; ``event`` is accepted
        and not needed. Raises InstanceNotFoundError, and InstanceEndedError for one that has failed.
        """
        del event
        await self.app().resume_instance(instance_id)

    def options(
        self,
        *,
        id: str | None = None,
        idempotency_key: str | None = None,
        priority: int = 0,
        delay: timedelta | None = None,
    ) -> BoundStart:
        """Options of one start, apart from the workflow's own arguments.

        ``id``: chosen id, 1 to 128 printable ASCII characters without blanks. ``idempotency_key``: a second start
            with the same key
        returns the first's id. ``priority``: higher runs first. ``delay``: not before (submit only).
        """
        return BoundStart(self, StartOptions(id, idempotency_key, priority, delay))

    def app(self) -> StartsWorkflows:
        """The app that a start without one means: the run's own, or the only one that has this workflow."""
        attempt = current_attempt.get()
        if attempt is not None:
            for app in running_apps:
                if app.has_workflow(self) and app.service_name == getattr(attempt.run.host, "app", None):
                    return app
        having = [app for app in running_apps if app.has_workflow(self)]
        if len(having) == 1:
            return having[0]
        if not having:
            msg = f"workflow {self.name!r}: no initialised app has it. Call 'await app.initialize()' first."
            raise NotRunningError(msg)
        names = ", ".join(repr(app.service_name) for app in having)
        msg = f"workflow {self.name!r}: the apps {names} all have it. Say which: 'await app.start({self.name}, ...)'."
        raise ConfigurationError(msg)

    def __repr__(self) -> str:
        """For people."""
        return f"<workflow {self.name}>"


class BoundStart:
    """A workflow with start options."""

    def __init__(self, workflow: Workflow[Any, Any], options: StartOptions) -> None:
        self._workflow = workflow
        self._options = options

    async def start(self, **kwargs: Any) -> str:
        """As ``Workflow.start``. A delayed start is submitted: its id comes back at once."""
        app = self._workflow.app()
        if self._options.delay is not None:
            return (await app.submit_workflow(self._workflow, kwargs, self._options)).id
        return await app.start_workflow(self._workflow, kwargs, self._options)

    async def submit(self, **kwargs: Any) -> Handle:
        """As ``Workflow.submit``."""
        return await self._workflow.app().submit_workflow(self._workflow, kwargs, self._options)


@overload
def workflow(
    func: Callable[Concatenate[WorkflowContext, P], Coroutine[Any, Any, R]], /
) -> Workflow[P, R]: ...
@overload
def workflow(
    func: None = None,
    *,
    name: str | None = None,
    event_handler: bool = False,
    lock_timeout_seconds: int | None = None,
    on: str | None = None,
    key: str | None = None,
    version: str | None = None,
) -> Callable[[Callable[Concatenate[WorkflowContext, P], Coroutine[Any, Any, R]]], Workflow[P, R]]: ...
def workflow(
    func: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    event_handler: bool = False,
    lock_timeout_seconds: int | None = None,
    on: str | None = None,
    key: str | None = None,
    version: str | None = None,
) -> Any:
    """Make an async function a durable workflow.

    ``name``: its stored name (default: the function's; it must not change while instances live). ``on``: events of
    this type (or ``"order.*"``) start it, their data being its arguments; with ``key="data.order_id"`` at most one run
    per key value lives at a time, and an event without the key (absent, or null) starts a run of its own.
    ``event_handler=True``: ``on`` its own name. ``lock_timeout_seconds`` is accepted and not needed.

    Raises ConfigurationError for an ``on`` that is no pattern and a ``key`` that is no path.
    """

    def decorate(target: Callable[..., Any]) -> Workflow[Any, Any]:
        return Workflow(
            target,
            name=name,
            event_handler=event_handler,
            lock_timeout_seconds=lock_timeout_seconds,
            on=on,
            key=key,
            version=version,
        )

    return decorate if func is None else decorate(func)


def get_all_workflows() -> dict[str, Workflow[Any, Any]]:
    """Every workflow declared in this process, by its stored name; of several with one name the last."""
    return {workflow.name: workflow for workflow in declared.values()}


#: The name that ``edda-framework 0.16`` had for what ``ctx.recur()`` raises.
RecurException = RecurError

__all__ = [
    "RecurException",
    "StartOptions",
    "Workflow",
    "declared",
    "get_all_workflows",
    "running_apps",
    "workflow",
]
