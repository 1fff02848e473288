"""What a relay needs of a transport."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edda.cloudevent import CloudEvent


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The other side has that very message."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Not now (or unknown whether it arrived): publish again.

    ``after``: seconds that the other side asked for. ``everything``: it takes no message at all now, so that the others
    wait, too, and are not tried in vain.
    """

    reason: str
    after: float | None = None
    everything: bool = False


@dataclass(frozen=True, slots=True)
class Permanent:
    """Never as it is: a dead letter."""

    reason: str


Confirm = Confirmed | Retry | Permanent


class Publisher(Protocol):
    """One destination."""

    destination: str
    publish_timeout: float  # seconds; no publish takes longer
    concurrency: int  # messages in flight at once

    def takes(self, event_type: str) -> bool:
        """Whether events of this type go there."""
        ...

    async def open(self) -> None:
        """Get ready. The other side need not be up."""
        ...

    async def publish(self, event: CloudEvent) -> Confirm:
        """Send one event and wait for its confirm. Does not raise for what the other side does."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
