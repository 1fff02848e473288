"""A destination that is no broker: the database's own inbox. What workflows publish on channels comes in there.

In:    outbox rows for ``INBOX``.   Out: events, accepted once per (source, id).
A channel message that an activity publishes must be committed with the activity, and be given its place in the accept
order under the accept lock: it is an outbox row first, and an event when the relay has handed it in.
"""

from __future__ import annotations

from collections.abc import Sequence

from edda.errors import EddaError, StorageUnavailableError
from edda.inbox.accept import Inbox, OverloadedError
from edda.storage.rows import Verdict
from outbox_relays.publisher import Confirm, Confirmed, Outgoing, Permanent, Retry

#: No relay of a user's has this name.
INBOX = "edda:inbox"


class InboxPublisher:
    """Hands events to the inbox of this process."""

    destination = INBOX
    publish_timeout = 15.0
    concurrency = 64
    lane_batch = 1

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def takes(self, event_type: str) -> bool:  # noqa: ARG002, the publisher's signature
        """Nothing by its type: only what is addressed to the inbox."""
        return False

    async def open(self) -> None:
        """Nothing to open."""

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Confirm]:
        """Accept; a duplicate was accepted before, and its confirm lost."""
        try:
            results = await self._inbox.deliver([message.event for message in messages])
        except (StorageUnavailableError, OverloadedError) as error:
            return [Retry(str(error), everything=True)]
        except EddaError as error:
            return [Retry(str(error))]
        return [
            Permanent(result.reason) if result.verdict is Verdict.REFUSED else Confirmed()
            for result in results
        ]

    async def close(self) -> None:
        """Nothing to close."""
