"""What a relay needs of a transport."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An event and its ordering key."""

    event: CloudEvent
    key: str | None = None


class Publisher(Protocol):
    """One destination."""

    destination: str
    publish_timeout: float  # seconds; no publish takes longer
    concurrency: int  # calls of ``publish`` in flight at once
    lane_batch: (
        int  # messages of one ordering key in one call; above 1 only where a later one never arrives alone
    )

    def takes(self, event_type: str) -> bool:
        """Whether events of this type go there."""
        ...

    async def open(self) -> None:
        """Get ready. The other side need not be up."""
        ...

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Confirm]:
        """Send messages of one ordering key (or one without a key), in order, and wait for their confirms.

        One confirm each, in order; fewer, if what stands behind the last was not sent. Nothing behind one that is not
        Confirmed counts. Does not raise for what the other side does.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
