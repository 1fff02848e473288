"""Where a process dies: before or after its n-th call of a storage method, or of anything else that has a name.

A program that is about to die says so on standard output, so that the test knows that it has died where it should.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, cast

from edda.engine.session import ActivitySession
from edda.errors import StaleRoutingError
from edda.storage.contract import Storage

When = Literal["before", "after"]

#: Every call by which a process changes the database, or learns what it then acts upon.
WATCHED = (
    "migrate",
    "declare_triggers",
    "register_worker",
    "register_shape",
    "events_of_pattern",
    "backfill",
    "accept",
    "mark_due",
    "insert_instances",
    "claim",
    "load",
    "flush",
    "apply_in_session",
    "fire_timers",
    "requeue_expired",
    "retire_worker",
    "outbox_take",
    "outbox_settle",
    "outbox_release",
)

#: The commit of the user's own transaction; "after" is before the engine hears of it.
COMMIT = "commit"


@dataclass(frozen=True, slots=True)
class Point:
    """One place, as text ``flush.3.before`` (or ``body.ship.1.after``)."""

    what: str
    number: int
    when: When

    def __str__(self) -> str:
        return f"{self.what}.{self.number}.{self.when}"

    @classmethod
    def of(cls, text: str) -> Point:
        what, number, when = text.rsplit(".", 2)
        return cls(what, int(number), cast("When", when))


class Points:
    """Counts what is reached; at the fatal point the process sends itself the signal."""

    def __init__(self, fatal: Point | None = None, number: signal.Signals = signal.SIGKILL) -> None:
        self.fatal = fatal
        self.signal = number
        self.reached: Counter[str] = Counter()

    def reach(self, what: str, when: When) -> None:
        """The process is here now."""
        if when == "before":
            self.reached[what] += 1
        if self.fatal == Point(what, self.reached[what], when):
            say(f"{self.signal.name} at {self.fatal}")
            self.fatal = None  # a call that is made again has the same number
            os.kill(os.getpid(), self.signal)

    def all(self) -> list[Point]:
        """Every point that was reached."""
        whens: tuple[When, When] = ("before", "after")
        return [
            Point(what, number, when)
            for what, times in self.reached.items()
            for number in range(1, times + 1)
            for when in whens
        ]


def say(line: str) -> None:
    """A line that stays whole, whoever else writes."""
    sys.stdout.flush()
    os.write(1, f"{line}\n".encode())


#: Of this process; a program sets it before it does anything.
here = Points()


def watch(store: Storage) -> Storage:
    """The same store; each of the watched methods is a point before and after its call."""
    return cast("Storage", _Watched(store))


def watch_session_commits() -> None:
    """The commit of ``ctx.session`` becomes a point, too."""
    finish = ActivitySession.finish

    async def watched(self: ActivitySession) -> None:
        here.reach(COMMIT, "before")
        await finish(self)
        here.reach(COMMIT, "after")

    ActivitySession.finish = watched  # type: ignore[method-assign]  # in this process only


class _Watched:
    def __init__(self, store: Storage) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in WATCHED:
            return found

        @functools.wraps(found)
        async def watched(*args: Any, **kwargs: Any) -> Any:
            here.reach(name, "before")
            try:
                answer = await found(*args, **kwargs)
            except StaleRoutingError:
                here.reached[name] -= 1  # nothing was written, and the same call comes again
                raise
            here.reach(name, "after")
            return answer

        return watched
