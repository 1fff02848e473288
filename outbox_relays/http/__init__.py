"""Events to an HTTP endpoint. Needs the extra ``http``."""

from outbox_relays.http.publisher import HttpPublisher

__all__ = ["HttpPublisher"]
