"""What the worker is to a run, and what a run tells it: the seam between ``run.py`` and ``worker.py``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from edda.cloudevent import CloudEvent
    from edda.engine.journal import Journal
    from edda.engine.run import Run
    from edda.engine.telling import Telling
    from edda.retry import RetryPolicy
    from edda.storage.contract import Storage
    from edda.storage.rows import EventResult, NewInstance, Shape, State, Turn


@dataclass(frozen=True, slots=True)
class WorkflowDefinition:
    """What the engine knows of a workflow: its name, and how its code begins for one run."""

    name: str
    entry: Callable[[Run], Coroutine[Any, Any, Any]]
    version: str | None = None
    encode: Callable[[Mapping[str, Any]], bytes] | None = None  # its arguments, for ``ctx.recur()``


@dataclass(frozen=True, slots=True)
class Released:
    """Why a run left the worker's memory. ``error`` is the workflow's exception or the reason of a refused start."""

    state: State | None  # None: lost to another owner
    error: BaseException | None = None
    user_visible: bool = True
    successor: NewInstance | None = None  # of a run that ended by ``ctx.recur()``, or of a keyed one
    instance_id: str = ""
    at_us: int = 0  # when it ended, by the database's clock


class Host(Protocol):
    """The worker, as a run sees it."""

    loop: asyncio.AbstractEventLoop
    journal: Journal
    store: Storage
    app: str
    owner: str
    default_policy: RetryPolicy
    strict_arguments: bool
    retry_park_after: float
    stopping: bool
    hooks: object | None
    deliver: Callable[[Sequence[CloudEvent]], Awaitable[list[EventResult]]]  # see ``Inbox.deliver``

    def now_us(self) -> int:
        """The database's clock, as well as it is known here."""
        ...

    def saw_now(self, now_us: int) -> None:
        """The database said what time it is."""
        ...

    def known_shape(self, pattern: str, paths: tuple[str, ...]) -> Shape | None:
        """A shape that is registered already."""
        ...

    async def ensure_shape(self, pattern: str, paths: tuple[str, ...]) -> Shape:
        """Register a shape; waits for the database as long as it takes."""
        ...

    def load_soon(self, run: Run) -> None:
        """Read the run's waits and call ``run.loaded``."""
        ...

    def timer(self, deadline_us: int) -> None:
        """A wait with this deadline is committed."""
        ...

    def committed(self, turn: Turn) -> None:
        """A turn is committed: pass on what it left for others."""
        ...

    def released(self, run: Run, how: Released) -> None:
        """The run has left memory."""
        ...

    def destinations(self, event_type: str) -> list[str]:
        """Where events of this type go."""
        ...

    def telling(self) -> Telling | None:
        """What calls the app's hooks for one run; None where the app has none."""
        ...

    def current_version(self, workflow: str) -> str | None:
        """On which version a new run is started."""
        ...

    def run_in_thread(self, func: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run a sync activity."""
        ...
