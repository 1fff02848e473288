"""The contract of a gateway that runs beside the app: consumers of brokers plug in here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edda.inbox.accept import Inbox


@dataclass(frozen=True, slots=True)
class Health:
    """How a gateway does, as seen from outside its client library."""

    healthy: bool
    detail: str


class Gateway(Protocol):
    """Fetch a batch, bind each message, accept them in one transaction, settle each: until stopped."""

    name: str

    async def start(self, inbox: Inbox) -> None:
        """Begin to consume. The broker need not be up."""
        ...

    async def stop(self) -> None:
        """Settle what is accepted, then let go."""
        ...

    def health(self) -> Health:
        """For ``/readyz``."""
        ...
