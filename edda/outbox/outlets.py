"""Where events go that plain application code publishes: the same way as those of the apps open in this process.

An app that is open says which destinations its relays serve, and wakes them. Publishing in a session of one's own names
no app; with one app open, or several that agree, its routes hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edda.errors import ConfigurationError

#: Where events go when nobody has said anything: to the only relay, which may run in another process.
DEFAULT = "default"

#: Where events are kept whose type none of an app's relays takes: in the outbox, for an operator to see.
UNROUTED = "unrouted"


class Route(Protocol):
    """A relay's publisher, as far as routing goes."""

    destination: str

    def takes(self, event_type: str) -> bool:
        """Whether events of this type go there."""
        ...


def routed(routes: Sequence[Route], event_type: str) -> list[str]:
    """The destinations of an event of this type, by the routes of one app."""
    found = [route.destination for route in routes if route.takes(event_type)]
    if found:
        return found
    return [UNROUTED] if routes else [DEFAULT]


class Outlet(Protocol):
    """An app, as far as its outbox goes."""

    service_name: str

    def destinations(self, event_type: str) -> list[str]:
        """Where events of this type go."""
        ...

    def outbox_news(self) -> None:
        """Rows were committed. From any thread."""
        ...


#: The apps that are open in this process.
outlets: list[Outlet] = []


def destinations_of(event_type: str) -> list[str]:
    """Where an event of this type goes. Raises ConfigurationError where the open apps do not agree."""
    answers = {outlet.service_name: sorted(outlet.destinations(event_type)) for outlet in outlets}
    if not answers:
        return [DEFAULT]
    first, *others = answers.values()
    if any(other != first for other in others):
        told = "; ".join(f"{name!r} sends it to {', '.join(answers[name])}" for name in sorted(answers))
        msg = (
            f"event {event_type!r}: several apps are open here, and {told}. Nothing was written. "
            f"Say where it goes: publish(..., destination={first[0]!r})."
        )
        raise ConfigurationError(msg)
    return first


def tell_outlets() -> None:
    """Rows were committed; whoever relays them may look."""
    for outlet in outlets.copy():  # apps may open and close in another thread meanwhile
        outlet.outbox_news()
