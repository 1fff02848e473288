"""The contract of a gateway that runs beside the app, and what every gateway's loop shares: consumers plug in here.

A loop fetches a batch, binds each message, hands all to one accept transaction, and settles them after its commit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edda.errors import StorageDataError, StorageError
from edda.inbox.accept import Accepted, Inbox, Positioned
from edda.storage.rows import NewDeadLetter, PositionAdvance

log = logging.getLogger("edda.gateway")

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0


@dataclass(frozen=True, slots=True)
class Health:
    """How a gateway does, as seen from outside its client library.

    Attributes:
        healthy: False: somebody should look.
        detail: Why, for people.
        lag: Messages that the broker holds for it; None: not known.
        idle_seconds: Since the last message was accepted, or since the start; None: not started.
    """

    healthy: bool
    detail: str
    lag: int | None = None
    idle_seconds: float | None = None


class Gateway(Protocol):
    """Fetch, bind, accept, settle: until stopped."""

    name: str  # unique in one app, shown in /readyz

    async def start(self, inbox: Inbox) -> None:
        """Begin to consume, in the background. The broker need not be up: it is tried again, and told by ``health``.

        Raises ConfigurationError for what can never work.
        """
        ...

    async def stop(self) -> None:
        """Fetch no more, settle what is accepted, let go."""
        ...

    def health(self) -> Health:
        """For ``/readyz``."""
        ...


async def accept_until_stored(
    inbox: Inbox,
    items: Sequence[Positioned],
    positions: Sequence[PositionAdvance] = (),
    poison: Sequence[NewDeadLetter] = (),
    *,
    who: str,
) -> Accepted:
    """Hand a batch in until the database has it: nothing else can be done with it, and a repeat changes nothing.

    Cancelled, its outcome is unknown: the broker then delivers it again. Raises StorageDataError if the database
    refuses a dead letter (larger than it takes, say), which no repeat changes; the events may be stored by then.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            return await inbox.accept_batch(items, positions, poison)
        except StorageDataError:
            raise
        except StorageError as error:
            log.warning("gateway_waits_for_database", extra={"gateway": who, "error": str(error)})
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
