"""``Retention``: how long an app keeps what is over."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from edda.errors import ConfigurationError
from edda.storage.rows import Keeps

#: Identities outlive what brokers deliver again: twice Kafka's default of seven days.
IDENTITIES = timedelta(days=14)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long things are kept when they are over; ``None`` is for ever. What something live refers to always stays.

    Args:
        events: Events of the inbox and messages of channels, since they were accepted. How far back a wait may look.
        identities: By which an event is known that is delivered again. Let it be longer than your brokers can replay;
            never shorter than ``events``.
        instances: Instances of this app and their histories, since they ended, however they ended. By default nothing
            is removed: a history may be the only record of what was done. An id or idempotency key is free again when
            its instance is removed.
        dead_letters: Deliveries and rows of the outbox that were given up, since they came. By default they stay until
            somebody replays or discards them.

    Where several apps share a database, events, identities and dead letters are everybody's and stay for the longest of
    their times. What is removed is gone at most ten minutes and the time that the work takes after it may go.

    Raises:
        ConfigurationError: A time that is not positive, or identities that would be forgotten before their events.
    """

    events: timedelta | None = timedelta(days=7)
    identities: timedelta | None = IDENTITIES
    instances: timedelta | None = None
    dead_letters: timedelta | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("events", "identities", "instances", "dead_letters"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, timedelta) and value > timedelta()):
                msg = (
                    f"Retention({name}={value!r}) must be a timedelta above zero, for example "
                    f"{name}=timedelta(days=30), or None for ever"
                )
                raise ConfigurationError(msg)
        if self.identities is not None and (self.events is None or self.events > self.identities):
            longer = "None" if self.events is None else f"{self.events!r} or longer, or None"
            msg = (
                f"Retention(events={self.events!r}, identities={self.identities!r}): an event that is delivered again "
                f"would be taken for a new one while its first copy is still kept. Use identities={longer}."
            )
            raise ConfigurationError(msg)

    @classmethod
    def of_days(cls, message_retention_days: float) -> Retention:
        """As ``EddaApp(message_retention_days=...)`` says it. Raises ConfigurationError unless it is above zero."""
        if not message_retention_days > 0:
            msg = f"message_retention_days={message_retention_days!r} must be above zero, for example 7"
            raise ConfigurationError(msg)
        events = timedelta(days=message_retention_days)
        return cls(events=events, identities=max(events, IDENTITIES))

    def keeps(self) -> Keeps:
        """In microseconds, for the database."""
        return Keeps(*map(_us, (self.events, self.identities, self.instances, self.dead_letters)))


def _us(time: timedelta | None) -> int | None:
    return None if time is None else time // timedelta(microseconds=1)
