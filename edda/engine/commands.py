"""What workflow code asks the engine for. A command's number is reserved when it is issued."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from edda.retry import RetryPolicy
from edda.storage.rows import WaitKind

if TYPE_CHECKING:
    from edda.engine.attempt import Attempt
    from edda.engine.block import Block
    from edda.engine.undo import Compensation


@dataclass(frozen=True, slots=True)
class ActivityCall:
    """One call of an activity: what to run, and how its result comes back.

    ``invoke`` gets the attempt (for ``ctx.session`` and friends) and returns the body's result.
    """

    name: str
    invoke: Callable[[Attempt], Awaitable[Any]]
    policy: RetryPolicy | None
    adapter: TypeAdapter[Any] | None
    undone_by: Callable[[Any], Compensation] | None = None  # of its result; registered with it
    undoes: bool = False  # it is a compensation itself
    timeout: float | None = None  # seconds that one attempt may take
    function: str = ""  # the name of what is called, where ``name`` was chosen by the caller


@dataclass(frozen=True, slots=True)
class EventWait:
    """What a ``wait_event`` waits for. ``paths`` and ``hash`` say how it is matched."""

    pattern: str
    paths: tuple[str, ...]
    hash: bytes
    timeout_us: int | None
    lookback_us: int | None = None  # keyed: how long before the chain's start; None: the grace
    from_registration: bool = False  # since="wait"
    after: int | None = None  # a subscription's: only what was accepted behind this number
    competing: bool = False  # a message is taken from all who wait for it


@dataclass(frozen=True, slots=True)
class TimerWait:
    """A sleep: ``delay_us`` from the commit that registers it, or an absolute ``deadline_us``."""

    delay_us: int | None = None
    deadline_us: int | None = None


class Command:
    """One reserved number: its future, and what is known of it."""

    __slots__ = (
        "args_hash",
        "attempt",
        "block",
        "call",
        "first_us",
        "future",
        "given_up",
        "in_body",
        "kind",
        "name",
        "registered",
        "seq",
        "wait",
    )

    def __init__(
        self, seq: int, kind: str, name: str, args_hash: bytes | None, future: asyncio.Future[Any]
    ) -> None:
        self.seq = seq
        self.kind = kind
        self.name = name
        self.args_hash = args_hash
        self.future = future
        self.call: ActivityCall | None = None
        self.wait: EventWait | TimerWait | None = None
        self.block: Block | None = None  # the open transaction that this activity belongs to
        self.registered = False  # a wait row of this number is (or is being) stored
        self.attempt = 1
        self.given_up = False  # its workflow is being stopped: this attempt is the last
        self.in_body = False  # an attempt's body (or its commit) is under way
        self.first_us = 0  # when the first attempt began, by the database's clock

    @property
    def undone_by(self) -> bool:
        """Whether it is an activity that something undoes."""
        return self.call is not None and self.call.undone_by is not None

    @property
    def user_visible(self) -> bool:
        """Whether start() returns when the run parks on it: a retry's backoff is not a wait."""
        return self.wait is not None


#: Wait kind -> command kind, for the determinism check of registered waits.
COMMAND_OF_WAIT = {
    WaitKind.EVENT: "wait_event",
    WaitKind.TIMER: "sleep",
    WaitKind.RETRY: "activity",
    WaitKind.CHILD: "child",
}
